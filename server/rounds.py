"""The rounds of a run, one after the other: broadcast, train, add up, step, evaluate, report, checkpoint."""

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import RoundAbandoned, RunError
from tessera.common.metrics.records import ResultRecord
from tessera.server.dispatch import Dispatcher
from tessera.server.federated_stats import Evaluations, item_statistics
from tessera.server.live.grouping import divide
from tessera.server.live.pace import Pace
from tessera.server.live.placing import begin_views
from tessera.server.model_selection import ModelSelection
from tessera.server.reporting import Reporter
from tessera.server.run_folder import RunFolder
from tessera.server.strategies.base import Strategy
from tessera.server.tasks import Tasks


def run_rounds(
    dispatcher: Dispatcher, strategy: Strategy, settings: Settings, catalogue: Catalogue, folder: RunFolder, pace: Pace
) -> ResultRecord:
    """Train from the last checkpoint, or from the start, to the end, and return the run's result."""
    selection, reporter, abandoned, due = ModelSelection(settings, pace.patience), Reporter(settings, folder), 0, 0
    tasks = Tasks(dispatcher, strategy, settings, folder, selection, pace)

    # 1. Take up the newest checkpoint, if there is one.
    if found := folder.load():
        tasks.round, progress, tensors = found
        strategy.restore(tensors)
        selection.best, selection.told, due = progress.best, progress.told, progress.due
        reporter.go_on(progress)
    last = reporter.last_round(tasks.round, pace.wanted(tasks.round - folder.first))

    def save(round: int) -> None:
        folder.save(round, strategy.state(), reporter.progress(selection, evaluations.due))

    # 2. Ask who is there, and where the embeddings start.
    statistics = item_statistics(tasks, len(catalogue))
    selection.people, selection.validated, reporter.ties = statistics.people, statistics.validated, statistics.ties
    if tasks.round == folder.first:
        reporter.statistics(statistics.answer, statistics.seconds, dispatcher.groups)
        begin_views(tasks, strategy, statistics, len(catalogue), found[1] if found else None)
    evaluations = Evaluations(tasks, selection, reporter, statistics, catalogue, save, due)
    reporter.begin_rounds()

    for round in pace.rounds(tasks.round, last, dispatcher, save):
        if evaluations.stale(round - 1):  # nothing has got better for long, here or before a resumed run was stopped
            break
        tasks.round, training = round, None
        try:
            divide(tasks, strategy, settings)
            # 3. Broadcast the views; clients evaluate them where that is due, train, and return sums, added up as they come.
            training = evaluations.train()
            if evaluations.stale(round - 1):  # as we hear only now: this training never happened
                tasks.round = round - 1
                break
            # 4. One vector-Jacobian product takes the sum to all parameters; one step.
            strategy.aggregate(training.require().update)
            abandoned = 0
            reporter.round(round, training, selection.people)
        except RoundAbandoned as reason:
            training, abandoned = None, abandoned + 1
            reporter.abandoned(round, reason)
            if not pace.goes_on(abandoned):
                told = f"round {round}: {abandoned} rounds in a row were abandoned; the last one: {reason}"
                raise RunError(told) from None
        # 5. Every few rounds the clients are to evaluate what they now have, and to return sums: is it the best round?
        if (training and round % settings.evaluation.every == 0) or round == last:
            evaluations.schedule(round)
        # 6. Checkpoint, now and then and where the run may end, and always what is best so far.
        if round % settings.federation.checkpoint_every == 0 and not folder.holds(round):
            save(round)

    # 7. Ask for what is still due and for the baselines, write the result, and tell the clients which round was selected.
    evaluations.end()
    result = reporter.result(tasks.round, selection, strategy)
    tasks.tell_selection()
    return result
