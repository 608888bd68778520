"""The terminal: colours that can be switched off, and what a shell completes."""

import json
import os
import pty
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tessera.common.errors import DataError
from tessera.deploy.cli.person.pictures import COLUMNS, ROWS, draw, drawn

TESSERA = Path(sys.executable).with_name("tessera")
COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-7]|9[0-7]|38;|4[0-7]|48;)[\d;]*m")
pytestmark = pytest.mark.integration


def on_a_terminal(*words: object, **environment: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [TESSERA, *map(str, words)],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    ):
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            said += part
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize("words", [("doctor",), ("recommend", "--data-dir", "nowhere", "--user", "x"), ("--help",)])
def test_colours_can_be_switched_off(words: tuple[str, ...]) -> None:
    assert COLOUR.search(on_a_terminal(*words)), "a terminal has them"
    assert not COLOUR.search(on_a_terminal("--no-color", *words))
    assert not COLOUR.search(on_a_terminal(*words, NO_COLOR="1"))
    piped = subprocess.run([TESSERA, *words], capture_output=True, text=True, check=False)
    assert "\x1b" not in piped.stdout + piped.stderr


def test_pictures_are_drawn_of_two_pixels_a_letter() -> None:
    picture = Image.new("RGB", (120, 120), "red")
    picture.paste("blue", (0, 60, 120, 120))
    shown = draw(picture)
    assert shown.plain == "\n".join(["▀" * COLUMNS] * ROWS)
    pixels = {(span.style.color.triplet.hex, span.style.bgcolor.triplet.hex) for span in shown.spans}  # type: ignore[union-attr]
    assert pixels == {("#ff0000", "#ff0000"), ("#0000ff", "#0000ff")}
    with pytest.raises(DataError, match="on a terminal with 256 colours"):
        drawn(Console(file=StringIO()), None)


def completed(line: str, folder: Path) -> list[str]:
    """What bash offers at the end of a line, by the script that `tessera --show-completion` prints."""
    program = f"""
        source <(tessera --show-completion)
        read -r _ function _ <<< "$(complete -p tessera | sed 's/.*-F/-F/')"
        COMP_WORDS=({line} '') COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        [[ {line!r} == *' ' ]] || {{ unset 'COMP_WORDS[-1]'; COMP_CWORD=$((COMP_CWORD - 1)); }}
        $function tessera
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{TESSERA.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", program],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_shell_completes_commands_runs_settings_and_methods(tmp_path: Path) -> None:
    for name in ("demo", "demo-grid/fcf/seed0"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "status.json").write_text("{}")
    (tmp_path / "server" / "submitted").mkdir(parents=True)
    (tmp_path / "server" / "submitted" / "lasting.json").write_text(json.dumps({}))
    (tmp_path / "grid.yaml").write_text("methods: {fcf-id: {}, sasrec: {}}\nbaselines: [popularity, fancy]\n")
    assert completed("tessera ru", tmp_path) == ["runs"]
    assert completed("tessera runs sh", tmp_path) == ["show"]
    assert completed("tessera runs show ", tmp_path) == ["runs/demo", "runs/demo-grid/fcf/seed0"]
    assert completed("tessera train --continue runs/demo-", tmp_path) == ["runs/demo-grid/fcf/seed0"]
    assert completed("tessera train x.yaml --executor ", tmp_path) == ["inline", "ray", "grpc"]
    assert completed("tessera train x.yaml --set server.learning", tmp_path) == ["server.learning_rate="]
    assert completed("tessera bench grid.yaml --only f", tmp_path) == ["fancy", "fcf-id"]
    assert completed("tessera federate stop --dir server ", tmp_path) == ["lasting"]
    assert completed("tessera train ", tmp_path) == [], "the shell offers files itself"
