"""Runs a bench: each method, choice and seed once, each baseline once; a killed bench goes on where it was."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
import yaml
from rich.console import Console

from tessera.benchmarks.harness.bootstrap import DIFFERENCES, paired_differences
from tessera.benchmarks.harness.per_user import QUARTILES, load_people, people_of, ranked
from tessera.benchmarks.harness.spec import BenchSpec, Content
from tessera.benchmarks.harness.tables import PEOPLE, TIED, Best, Outcome
from tessera.client.recommend import Personal
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.data.splits import make_split
from tessera.common.errors import ConfigError, DataError, TesseraError
from tessera.common.metrics.names import ALL, TEST, USERS, MetricName, Scores, names_in, written
from tessera.common.utils.atomic_files import read_json, write_bytes, write_json
from tessera.common.utils.tables import write_table
from tessera.deploy.api.progress import RunDisplay
from tessera.deploy.api.ticker import Ticker, clock
from tessera.deploy.executors.run import DEVICES, make_job, run_job
from tessera.deploy.provisioning.datasets import check_split, prepared_dataset
from tessera.server.model_selection import criterion

if TYPE_CHECKING:
    from tessera.benchmarks.baselines.base import Baseline

RESULT = "result.json"
TRAFFIC = tuple(f"bytes_{way}_{of}" for of in ("per_node", "per_user", "alone") for way in ("down", "up"))
COLUMNS = {
    "dataset": pl.String,
    "method": pl.String,
    "seed": pl.Int64,
    "chosen": pl.String,
    "left_out": pl.String,
    TIED: pl.Float64,
    PEOPLE: pl.Float64,
}
TESTED = MetricName(TEST, ALL, USERS)
"""How many people's test targets figures are of."""
Tell = Callable[[str], None]


@dataclass
class Progress:
    """Which of how many runs begins, the time that passed, and what is left by the mean of the runs made so far."""

    total: int
    tell: Tell
    done: int = 0
    made: int = 0
    began: float = field(default_factory=time.monotonic)

    def begin(self, what: str) -> None:
        """Say that a run begins."""
        passed = time.monotonic() - self.began
        left = f", about {clock(passed / self.made * (self.total - self.done))} left" if self.made else ""
        self.tell(f"{what}: run {self.done + 1} of {self.total}, {clock(passed)} passed{left}")

    def end(self, made: bool) -> None:
        """Count a run, `made` now or found from before."""
        self.done, self.made = self.done + 1, self.made + made


def run_bench(bench: BenchSpec, data: Path | None, runs: Path, tell: Tell) -> Outcome:
    """Run what has no result yet below `runs`; write results.parquet, differences.parquet, results.md and best.yaml there.

    What fails is left out of the tables, with its reason, and tried again next time. A finished run of the same settings is
    not repeated.
    """
    progress, rows, pairs, best = Progress(bench.runs(), tell), [], [], []
    for dataset in bench.datasets:
        session = Session(bench, dataset, data, runs / bench.name / dataset, progress)
        session.run()
        named = {"dataset": dataset or bench.shared(dataset).data.folder}
        rows += [named | row for row in session.rows]
        pairs += [named | row for row in paired_differences(session.people, bench.pairs)]
        best += session.best()
    table = pl.DataFrame(rows, schema_overrides=COLUMNS, infer_schema_length=None)
    table = table.with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in COLUMNS.items() if name not in table
    )
    outcome = Outcome(table, pl.DataFrame(pairs, schema=DIFFERENCES), tuple(best))
    write_table(runs / bench.name / "results.parquet", outcome.table)
    write_table(runs / bench.name / "differences.parquet", outcome.differences)
    write_bytes(runs / bench.name / "results.md", outcome.markdown().encode())
    return outcome


@dataclass
class Session:
    """A bench on one dataset: its rows so far, and each method's results person by person, a table a seed."""

    bench: BenchSpec
    dataset: str
    data: Path | None
    folder: Path
    progress: Progress
    rows: list[Content] = field(default_factory=list)
    people: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    trivial: dict[tuple[str, int], Content] = field(default_factory=dict)
    chosen: dict[str, Content] = field(default_factory=dict)

    def run(self) -> None:
        """Run every method and centralised baseline; the trivial ones come last."""
        for method in self.bench.methods:
            self._method(method)
        for baseline in self.bench.baselines:
            self._baseline(baseline)
        there = {row["method"] for row in self.rows}
        trivial = [(name, scores) for (name, _), scores in self.trivial.items() if name not in there]
        self.rows += [{"method": name, PEOPLE: scores.get(str(TESTED))} | scores for name, scores in trivial]

    def best(self) -> list[Best]:
        """Write best.yaml, settings of the method that is best on validation in the mean of its seeds; [] where none ran."""
        measured, found = criterion(self.bench.shared(self.dataset)), dict[str, list[float]]()
        name = str(measured)
        for row in self.rows:
            if row["method"] in self.chosen and row.get(name) is not None:
                found.setdefault(row["method"], []).append(row[name])
        if not found:
            return []
        method = max(found, key=lambda one: fmean(found[one]))
        content = self.bench.content(self.dataset, method, self.chosen[method], self.bench.method_seeds(method)[0])
        path = self.folder / "best.yaml"
        text = yaml.safe_dump(content | {"name": f"{self.bench.name}-{method}"}, sort_keys=False)
        write_bytes(path, f"# tessera train {path}\n#\n# The best on validation of {self.bench.name}.\n{text}".encode())
        return [Best(self.dataset, method, measured.measure, fmean(found[method]), path)]

    def _method(self, method: str) -> None:
        """Try a method's candidates with the first seed, keep the best NDCG on validation, and run it with all seeds. Test
        is not looked at."""
        seeds = self.bench.method_seeds(method)
        tried = [(one, self._result(method, one, seeds[0])) for one in self.bench.candidates(method)]
        chosen, first = max(tried, key=lambda pair: self._validation(pair[1]))
        shown = [{**one, "validation": self._validation(result)} for one, result in tried if "scores" in result]
        shown += [{**one, "left_out": result["left_out"]} for one, result in tried if "left_out" in result]
        write_json(self.folder / method / "tried.json", {"tried": shown, "chosen": chosen})
        self.chosen[method] = chosen
        for seed in seeds:
            result = first if seed == seeds[0] else self._result(method, chosen, seed)
            row = {"method": method, "seed": seed, "chosen": _said(chosen)}
            self._add(row | _figures(result), self._run_dir(method, chosen, seed))
            # A seed draws who and what is cold; otherwise it changes nothing about the baselines. The first method's stay:
            # one that is told the validation item would show contents more of a history.
            for name, scores in _baselines(result).items():
                self.trivial.setdefault((name, seed if self._cold else 0), scores)

    def _validation(self, result: Content) -> float:
        """What choices are compared by, as rounds are; below anything where the run failed."""
        name = criterion(self.bench.shared(self.dataset))
        return float(result.get("scores", {}).get(str(name), -1.0))

    @property
    def _cold(self) -> bool:
        data = self.bench.shared(self.dataset).data
        return bool(data.cold_items or data.cold_users)

    def _baseline(self, baseline: str) -> None:
        """Search a baseline's grid with the first seed and fit what validation chose with every seed, or read what was."""
        shared, run_dir = self.bench.shared(self.dataset), self.folder / baseline
        wanted = shared.model_dump(
            mode="json", include={"data": True, "evaluation": {"ks", "history_at_test", "sampled_candidates"}}
        )
        wanted |= {"seeds": list(self.bench.baseline_seeds), "quick": self.bench.quick is not None}
        result = self._made(run_dir, wanted, lambda: self._fit(baseline, run_dir))
        if "left_out" in result:
            first = self.bench.baseline_seeds[0]
            self._add({"method": baseline, "seed": first, "left_out": result["left_out"]}, run_dir)
        for figures in result.get("runs", ()):
            self._add({"method": baseline, "chosen": _said(result["chosen"])} | figures, run_dir)

    def _add(self, row: Content, run_dir: Path) -> None:
        """Add a row, and the results of its people, who lie beside it."""
        self.rows.append(row)
        if "left_out" not in row and not self.bench.shared(self.dataset).asks_questions:
            people = load_people(run_dir / _people_file(row["seed"]))
            self.people.setdefault(row["method"], []).append(people)
            row.setdefault(PEOPLE, float(len(people)))

    def _run_dir(self, method: str, chosen: Content, seed: int) -> Path:
        label = "-".join([f"seed{seed}", *(f"{key.split('.')[-1]}={value}" for key, value in chosen.items())])
        return self.folder / method / label

    def _result(self, method: str, chosen: Content, seed: int) -> Content:
        """Run one method with one choice and seed, or read the result it left."""
        settings, run_dir = self.bench.settings(self.dataset, method, chosen, seed), self._run_dir(method, chosen, seed)
        return self._made(run_dir, settings.model_dump(mode="json"), lambda: self._train(settings, run_dir))

    def _made(self, run_dir: Path, wanted: Content, make: Callable[[], Content]) -> Content:
        """The result of `make`, or the one that lies in `run_dir` if it is of the settings `wanted`; {"left_out": reason} when
        it fails, so that a run that diverges does not lose the rest."""
        if (run_dir / RESULT).is_file() and (found := read_json(run_dir / RESULT))["settings"] == wanted:
            self.progress.end(made=False)
            return found
        name = str(run_dir.relative_to(self.folder))
        self.progress.begin(" ".join(filter(None, (self.dataset, name))))
        try:
            result = make() | {"settings": wanted}
            write_json(run_dir / RESULT, result)
        except TesseraError as error:
            self.progress.tell(f"{name} is left out: {error}")
            result = {"left_out": str(error)}
        self.progress.end(made=True)
        return result

    def _train(self, settings: Settings, run_dir: Path) -> Content:
        """Train, and rank for everybody with the state of the round that validation selected."""
        dataset = prepared_dataset(settings.data, self.data)
        if settings.asks_questions:
            from tessera.benchmarks.harness.qa_runs import train_questions

            return train_questions(settings, dataset, run_dir, self.progress.tell)
        job = make_job(settings, dataset, run_dir, resume=False, overwrite=True)
        k, display = max(settings.evaluation.ks), RunDisplay(settings, Console(quiet=True), run_dir)
        try:
            with Ticker(self.progress.tell, display.line):
                ended = run_job(job, "inline", display.report)
            people = people_of(job.devices, ended.selected_round)
            people.save(run_dir / _people_file(settings.seed))
            result = ended.to_json()
            result["scores"] |= written(people.figures(k))
            result |= _numbers_held(job.devices[0])
        finally:  # everybody's own item table is half a gigabyte a run with PFedRec: what no table needs is not kept
            for folder in (DEVICES, "checkpoints"):
                shutil.rmtree(run_dir / folder, ignore_errors=True)
        return result

    def _fit(self, name: str, run_dir: Path) -> Content:
        """Search, fit and measure a baseline, and rank for everybody with what each seed gave."""
        from tessera.benchmarks.baselines.selection import compare

        settings = self.bench.shared(self.dataset)
        if self._cold:
            raise ConfigError("baselines are not fitted without cold items or cold users")
        dataset, k = prepared_dataset(settings.data, self.data), max(settings.evaluation.ks)
        check_split(dataset, settings.data)
        quick = self.bench.quick is not None
        catalogue = load_catalogue(dataset)
        split = make_split(load_interactions(dataset, len(catalogue)), settings.data, settings.seed)
        found: dict[int, Scores] = {}

        def inspect(baseline: "Baseline", seed: int) -> None:
            people = ranked(baseline.scores, split, torch.from_numpy(split.counts()), settings.evaluation)
            people.save(run_dir / _people_file(seed))
            found[seed] = people.figures(k)

        began = time.monotonic()
        with Ticker(self.progress.tell, lambda now: f"{name}: searching and fitting, {clock(now - began)} passed"):
            result = compare(name, split, catalogue, self.bench.baseline_seeds, settings.evaluation, quick, inspect)
        runs = []
        for run in result.runs:
            percent = {str(name): 100 * run[str(name)] for name in names_in(run)}
            seed = int(run["seed"])
            runs.append({"seed": seed, "seconds": run["seconds"]} | percent | written(found[seed]))
        return {"runs": runs, "chosen": result.chosen, "tried": result.tried}


def _people_file(seed: int) -> str:
    return f"people-seed{seed}.parquet"


def _said(chosen: Mapping[str, Any]) -> str:
    """What was chosen, in a word: learning_rate=0.01, rank=64."""
    return ", ".join(f"{key.split('.')[-1]}={value}" for key, value in chosen.items())


def _numbers_held(device: Path) -> Content:
    """How many private numbers a device keeps for one person, the optimiser's aside, and with those that it received.

    The paper's Table 3 counts the latter, for some methods with item tables and for some without.
    """
    personal = Personal.open(device)
    _, private = personal.people()[0]
    if not private:
        raise DataError(f"{device}: no private state was written")
    own = sum(value[0].numel() for value in private.values())
    return {"private_parameters": own, "held_parameters": own + sum(value.numel() for value in personal.sent.values())}


def _baselines(result: Content) -> dict[str, Content]:
    """Scores of each trivial baseline, by name; they are the same in every run on one split."""
    found: dict[str, Content] = {}
    for name in names_in(result.get("baselines", {})):
        if not name.counts:
            found.setdefault(name.baseline, {})[str(name.of(""))] = result["baselines"][str(name)]
    return found


def _figures(result: Content) -> Content:
    if "left_out" in result:
        return {"left_out": result["left_out"]}
    # Of the numbers of users only the quartiles' are shown: they say where these are cut.
    quartiles = {group for quartiles in QUARTILES for group in quartiles.groups}
    shown = [name for name in names_in(result["scores"]) if not name.counts or name.group in quartiles]
    scores = {str(name): result["scores"][str(name)] for name in shown}
    kept = (
        "selected_round",
        "rounds",
        "seconds",
        "private_parameters",
        "held_parameters",
        "epsilon",
        "delta",
        *TRAFFIC,
    )
    rest = {name: result[name] for name in kept if name in result} | {TIED: result.get("ties", {}).get("test")}
    rest[PEOPLE] = result["scores"].get(str(TESTED))
    return {**scores, **rest, "seconds_per_round": result["seconds"] / result["rounds"]}
