"""Prometheus: an endpoint on the loopback address that is scraped while the run goes on."""

import logging

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tessera.common.config.settings import Settings
from tessera.common.metrics.records import EvaluationRecord, Record, RoundRecord
from tessera.server.run_folder import RunFolder

log = logging.getLogger("tessera.server")
PORT = 9464
"""Where it is, or at a free port where that is taken; the run's log says which."""
SCORE = ("run", "part", "group", "metric", "k")


class Prometheus:
    """Gauges of the last round and the last evaluation, and a counter of answers that were not taken, by kind."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        registry, self._name = CollectorRegistry(), settings.name

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"tessera_{name}", text, ("run", *labels), registry=registry)

        self._gauges = {
            "round": gauge("round", "The last round of the run."),
            "loss": gauge("loss", "Mean training loss of the people who took part in it."),
            "users": gauge("users", "People who took part in it."),
            "nodes": gauge("nodes", "Nodes that answered it."),
            "seconds": gauge("round_seconds", "Seconds that it took."),
            "epsilon": gauge("epsilon", "What all training so far tells of a person."),
            "bytes_down_per_node": gauge("round_bytes_down_per_node", "Bytes to each node that answered it."),
            "bytes_up_per_node": gauge("round_bytes_up_per_node", "Bytes from each node that answered it."),
        }
        self._score = gauge("score", "Figures of the last evaluation, in %.", *SCORE[1:])
        self._dropped = Counter("tessera_dropped", "Answers that were not taken.", ("run", "kind"), registry=registry)
        try:
            self._server, _ = start_http_server(PORT, "127.0.0.1", registry)
        except OSError:
            self._server, _ = start_http_server(0, "127.0.0.1", registry)
        log.info("Prometheus may scrape http://127.0.0.1:%d/metrics", self._server.server_port)

    def line(self, line: Record) -> None:
        """Set what a line says."""
        if isinstance(line, RoundRecord):
            for name, gauge in self._gauges.items():
                if (value := getattr(line, name)) is not None:
                    gauge.labels(self._name).set(value)
        if isinstance(line, EvaluationRecord):
            for one, figure in line.scores.items():
                if not one.counts:
                    self._score.labels(self._name, one.part, one.group, one.metric, str(one.k or "")).set(figure)
        for kind, times in (getattr(line, "dropped", None) or {}).items():
            self._dropped.labels(self._name, kind).inc(times)

    def end(self, state: str) -> None:
        """Close the endpoint."""
        self._server.shutdown()
        self._server.server_close()
