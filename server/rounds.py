"""The rounds of a run, one after the other: broadcast, train, add up, step, evaluate, report, checkpoint."""

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import RoundAbandoned, RunError
from tessera.common.metrics.ranking import percentages
from tessera.common.metrics.records import ResultRecord
from tessera.server.dispatch import Dispatcher
from tessera.server.federated_stats import baseline_scores, item_statistics, spectral_start
from tessera.server.model_selection import ModelSelection
from tessera.server.reporting import Reporter
from tessera.server.run_folder import Progress, RunFolder
from tessera.server.strategies.base import Strategy
from tessera.server.tasks import TRIES, Tasks


def run_rounds(
    dispatcher: Dispatcher, strategy: Strategy, settings: Settings, catalogue: Catalogue, folder: RunFolder
) -> ResultRecord:
    """Train from the last checkpoint, or from the start, to the end, and return the run's result."""
    selection, reporter, abandoned = ModelSelection(settings), Reporter(settings, folder), 0
    tasks = Tasks(dispatcher, strategy, settings, folder, selection)

    # 1. Take up the newest checkpoint, if there is one.
    if found := folder.load():
        tasks.round, progress, tensors = found
        strategy.restore(tensors)
        selection.best, selection.told = progress.best, progress.told
        reporter.baselines, reporter.seconds = progress.baselines, progress.seconds

    # 2. Ask who is there, and once what needs no training: the baselines, and where the embeddings start.
    dispatcher.wait()
    statistics = item_statistics(tasks, len(catalogue))
    selection.people = statistics.people
    if settings.evaluation.baselines and not reporter.baselines:
        reporter.baselines = baseline_scores(tasks, catalogue, statistics.counts)
    if not tasks.round:
        reporter.statistics(statistics)
        if settings.views.spectral_rounds:
            spectral_start(tasks, strategy, len(catalogue), settings)
    reporter.begin_rounds()

    for round in range(tasks.round + 1, settings.rounds + 1):
        if selection.stale(round - 1):  # nothing has got better for long, here or before a resumed run was stopped
            break
        tasks.round, training, evaluation, scores = round, None, None, {}
        try:
            # 3. Broadcast the views; clients train their people and return gradients, which are added up as they arrive.
            training = tasks.send("train")
            # 4. One vector-Jacobian product takes the sum to all parameters; one step.
            strategy.aggregate(training.update)
            abandoned = 0
        except RoundAbandoned as reason:
            training, abandoned = None, abandoned + 1
            reporter.abandoned(round, reason)
            if abandoned == TRIES:
                raise RunError(
                    f"round {round}: {TRIES} rounds in a row were abandoned; the last one: {reason}"
                ) from None
        # 5. Every few rounds the clients evaluate what they now have, and return sums: is it the best round?
        if (training and round % settings.evaluation.every == 0) or round == settings.rounds:
            evaluation = tasks.send("evaluate", statistics.counts)
            scores = percentages(evaluation.update.sums)
            selection.consider(round, scores, evaluation.update.sums["evaluated"])
        # 6. Report.
        reporter.round(round, training, evaluation, scores, selection.people)
        # 7. Checkpoint, now and then and where the run may end, and always what is best so far.
        last = selection.stale(round) or round == settings.rounds
        if last or round == selection.round or round % settings.federation.checkpoint_every == 0:
            progress = Progress.of(selection, reporter.baselines, reporter.seconds)
            folder.save(round, strategy.state(), progress)

    # 8. Write the result, and let the clients know which round was selected.
    result = reporter.result(tasks.round, selection, strategy)
    tasks.tell_selection()
    return result
