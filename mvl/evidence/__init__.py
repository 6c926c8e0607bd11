"""What the records say: differences, intervals, the decision rule, the ledger of claims, the audit.

It reads tables and computes; it draws nothing. It imports `bench` and what lies below.
"""
