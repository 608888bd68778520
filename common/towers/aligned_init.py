"""Reads and writes what a device class starts from: its frozen tower, and the aligned A and B of its P and Q.

CLASS/reader.safetensors or CLASS/model/            the frozen tower: a reader of ours, or somebody's model
CLASS/start-whitened-r16-b4-base+tiny.safetensors   A, B and offset of each place, by alignment, rank, blocks and the classes
                                                    that were aligned with each other
CLASS/public-600.safetensors                        see `tessera.common.towers.public_questions`
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn

from tessera.common.config.settings import TOWER_DIM, MosaicSettings
from tessera.common.data.questions import N_CHOICES
from tessera.common.errors import DataError
from tessera.common.protocol.adapters import LOGITS, LORA, PQ, SIGNATURE
from tessera.common.protocol.signature_mask import n_kept
from tessera.common.registry.methods import PQSettings
from tessera.common.towers.adapter_placement import placement
from tessera.common.towers.models.load import READER, content, n_parameters
from tessera.common.towers.projections import Projections
from tessera.common.towers.public_questions import public_path
from tessera.common.utils.atomic_files import digest, read_tensors, write_tensors

STACKS = {"reader": "layers"}
"""The parts of a reader of ours that are adapted."""
STANDARD = PQSettings(name="pq")


def n_blocks(mosaic: MosaicSettings) -> int:
    """Layers that carry PQ-LoRA: none where the method does without."""
    return mosaic.pq.blocks if mosaic.pq else 0


def places_of(
    tower: nn.Module, mosaic: MosaicSettings, shared: Collection[str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """The linear layers of a tower that are adapted, and of these the ones with P and Q with the places they share."""
    return placement(tower, stacks_of(tower), n_blocks(mosaic), (mosaic.pq or STANDARD).queries_and_keys, shared)


def aligned_init_path(folder: Path, mosaic: MosaicSettings) -> Path:
    """Where a device class keeps the start that a run's settings ask for, which have PQ-LoRA.

    What is not as usual about the alignment is in the name too, as a hash.
    """
    together, pq = "+".join(sorted(set(mosaic.classes))), mosaic.pq or STANDARD
    unusual = mosaic.alignment.model_dump(exclude_defaults=True) | ({"qk": True} if pq.queries_and_keys else {})
    mark = f"-{digest(repr(sorted(unusual.items())).encode())[:8]}" if unusual else ""
    return folder / f"start-{pq.alignment}-r{mosaic.rank}-b{pq.blocks}{mark}-{together}.safetensors"


def save_aligned_init(path: Path, start: Mapping[str, Projections], readers: str) -> None:
    """Write A [rank, d_in], B [d_out, rank] and the offset [rank] of each place, and which `readers` they were aligned for."""
    tensors = {f"{place}/{part}": getattr(own, part) for place, own in start.items() for part in ("a", "b", "offset")}
    write_tensors(path, tensors, {"readers": readers})


def made_from(path: Path) -> str | None:
    """The readers that a start was aligned for; None where there is no whole one."""
    try:
        return read_tensors(path)[1].get("readers")
    except DataError:
        return None


def load_aligned_init(path: Path) -> dict[str, Projections]:
    """Read what `save_aligned_init` wrote. Raises `DataError` that names the file."""
    tensors, _ = read_tensors(path)
    try:
        places = sorted({name.rpartition("/")[0] for name in tensors})
        return {
            place: Projections(tensors[f"{place}/a"], tensors[f"{place}/b"], tensors[f"{place}/offset"])
            for place in places
        }
    except KeyError as error:
        raise DataError(f"{path} lacks {error}: it was not written by Tessera") from None


def stacks_of(tower: nn.Module) -> Mapping[str, str]:
    """What a tower's stacks encode, and where its lists of blocks are."""
    own: Mapping[str, str] = getattr(tower, "stacks", STACKS)
    return own


def tower_id(folder: Path, device_class: str, mosaic: MosaicSettings) -> str:
    """The class with the content of its tower, its start and the public questions that it answers: only devices with the same
    tower id can be merged."""
    public = public_path(folder, mosaic) if mosaic.method_spec.shares == "logits" else None
    try:
        start = aligned_init_path(folder, mosaic).read_bytes() if n_blocks(mosaic) else b""
        start += public.read_bytes() if public else b""
        return f"{device_class}-{digest(content(folder).encode() + start)[:12]}"
    except FileNotFoundError as error:
        make = "`tessera towers fit`" if Path(error.filename).name == READER else "`tessera data partition --config`"
        raise DataError(f"{error.filename} does not exist: make it by {make}") from None


def shared_places(folder: Path, mosaic: MosaicSettings) -> frozenset[str] | None:
    """The places for which the start in a tower's folder has matrices; None for a method without PQ-LoRA."""
    return frozenset(load_aligned_init(aligned_init_path(folder, mosaic))) if n_blocks(mosaic) else None


def shapes(folder: Path, tower: nn.Module, mosaic: MosaicSettings, signer_size: int) -> dict[str, tuple[int, ...]]:
    """Shape of every part of the `AdapterUpdate` of a device with the `tower` in `folder`, by name."""
    targets, places = places_of(tower, mosaic, shared_places(folder, mosaic))
    rank, relevant = mosaic.rank, mosaic.method_spec.shares == "relevant"
    found: dict[str, tuple[int, ...]] = {SIGNATURE: (n_kept(signer_size, mosaic.signature.kept) if relevant else 0,)}
    if mosaic.method_spec.shares == "logits" and mosaic.distillation:
        return found | {LOGITS: (mosaic.distillation.public_questions, N_CHOICES)}
    for name in targets:
        d_out, d_in = tower.get_parameter(f"{name}.weight").shape
        if name in places:
            found |= {f"{PQ}{places[name]}.P": (rank, rank), f"{PQ}{places[name]}.Q": (rank,)}
        if mosaic.share == "pq+class" and (name not in places or (mosaic.pq and mosaic.pq.union)):
            found |= {f"{LORA}{name}.A": (rank, d_in), f"{LORA}{name}.B": (d_out, rank)}
    return found


def bytes_at_places(reader: nn.Module, mosaic: MosaicSettings) -> tuple[int, int]:
    """Bytes that P and Q of all places take, r^2 + r numbers each, and LoRA on the same layers, r (d_in + d_out) each.

    For a method without PQ-LoRA they are those that it would take by default.
    """
    _, places = places_of(reader, mosaic if n_blocks(mosaic) else mosaic.model_copy(update={"method": STANDARD}))
    rank, shapes = mosaic.rank, [reader.get_parameter(f"{name}.weight").shape for name in places]
    return 4 * len(shapes) * (rank**2 + rank), 4 * rank * sum(d_out + d_in for d_out, d_in in shapes)


def smallest(dataset: Path, classes: tuple[str, ...]) -> str:
    """The class whose tower, frozen, signs for all devices: FedMosaic's W_s. Raises `DataError` where one is missing."""
    try:
        return min(classes, key=lambda name: (n_parameters(tower_folder(dataset, name)), name))
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} does not exist: make it by `tessera towers fit`") from None


def tower_folder(dataset: Path, device_class: str) -> Path:
    """Where the tower of a device class lies."""
    return dataset / "towers" / device_class


def last_layer(tower: nn.Module) -> nn.Module:
    """The layer whose gradient is a signature: a reader's head. A language model's is as large as all the rest: there it is
    what the last attention writes through."""
    return tower.get_submodule(getattr(tower, "signs_with", "head"))


def signature_size(signer: nn.Module, mosaic: MosaicSettings) -> int:
    """Number of coordinates of a signature before some are kept."""
    if mosaic.signature.of == "own":
        return TOWER_DIM
    return sum(parameter.numel() for parameter in last_layer(signer).parameters())
