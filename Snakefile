"""A study as a graph: one job per run of its grid, then its tables, the executed notebooks and the book.

snakemake --profile workflow/profiles/local all_runs --config study=quick      (mvl study run does this, with one line of progress)

What a job declares as its output is a stamp, never a file of the run: Snakemake removes the outputs of a failed job, and a run keeps
its own checkpoints and knows by `status.json` whether it is done. Stamps follow the runs' own state each time the graph is read.
"""

import json
import os
import sys
from pathlib import Path
from shlex import quote

from mvl.core.config import ROOT
from mvl.core.run_folder import default_results_dir, is_done, run_name
from mvl.study.grid import study_runs

STUDY = str(config.get("study", "quick"))
RESULTS = Path(config.get("results_dir") or default_results_dir()).absolute()
OPTIONS = f"--results-dir {quote(str(RESULTS))}"
DATA = f" --data-dir {quote(str(Path(config['data_dir']).absolute()))}" if config.get("data_dir") else ""
MVL = f"{quote(sys.executable)} -m mvl"
SLOT = f" --runs-per-gpu {config['runs_per_gpu']}" if config.get("gpu") else ""  # a cluster deals its cards itself
DRIFT = " --allow-drift" if config.get("allow_drift") else ""
HOME = RESULTS / Path(STUDY).stem
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
RUNS = {run_name(run): run for run in study_runs(STUDY)}
NEEDS = json.loads((HOME / "needs.json").read_text()) if (HOME / "needs.json").is_file() else {}


def need(name, what, otherwise):
    """What the planner says that a run needs (`mvl study run` asks it for any profile but `local`)."""
    return NEEDS.get(name, {}).get(what, otherwise)


def gpus(name):
    """Cards that a run asks for: on this machine one where there are any (`mvl study run` looks), on a cluster what the planner says."""
    return int(config["gpu"]) if "gpu" in config else need(name, "gpu", 0)


def stamp(name):
    """Stamp of a run, beside the runs: only Snakemake looks at it."""
    return HOME / ".graph" / f"{name}.done"


def follow_runs():
    """Give each done run its stamp, with the time at which it finished, and take the stamp from every other."""
    for name in RUNS:
        folder, mark = HOME / "runs" / name, stamp(name)
        if not is_done(folder):
            mark.unlink(missing_ok=True)
        elif not mark.exists():
            finished = (folder / "status.json").stat().st_mtime
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.utime(mark, (finished, finished))


if workflow.is_main_process:
    follow_runs()


rule all_runs:
    message:
        f"all runs of {STUDY}"
    input:
        [stamp(name) for name in RUNS],
    default_target: True


rule train:
    message:
        "{wildcards.run}: threads {threads}, {resources.gpu} GPU, {resources.mem_mb} MB, at most {resources.runtime} minutes"
    output:
        touch(str(HOME / ".graph" / "{run}.done")),
    log:
        str(HOME / "logs" / "{run}.log"),
    params:
        run=lambda wildcards: RUNS[wildcards.run],
    wildcard_constraints:
        run="[^/]+/[^/]+/fraction-[^/]+",
    threads: lambda wildcards: RUNS[wildcards.run].train.num_threads
    resources:
        mem_mb=lambda wildcards: need(wildcards.run, "mem_mb", 16000),
        runtime=lambda wildcards: need(wildcards.run, "minutes", 240),
        gpu=lambda wildcards: gpus(wildcards.run),
        at_once=1,
    shell:
        "OMP_NUM_THREADS=1 {MVL} train --study {STUDY:q} --task {params.run.task} --system {params.run.system}"
        " --fraction {params.run.fraction} --fold {params.run.fold} --seed {params.run.seed} {OPTIONS}{DATA}{SLOT}{DRIFT} >> {log:q} 2>&1"


rule collect:
    input:
        rules.all_runs.input,
    output:
        HOME / "runs.csv",
        HOME / "cases.csv",
        HOME / "history.csv",
    shell:
        "{MVL} study collect {STUDY:q} {OPTIONS}"


rule book:
    input:
        rules.collect.output,
    output:
        touch(str(HOME / ".graph" / "book.done")),
    shell:
        "{MVL} book --rerun {STUDY:q} {OPTIONS}"
