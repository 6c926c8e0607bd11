"""Figures across arms: every difference by question, curves by share of the data and by arm, Dice
by fold, cost against Dice."""
