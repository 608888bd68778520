"""Writes a device's part in an epoch of secure sums as bytes, so that it outlives the process, and reads it.

The bytes hold the secrets of the epoch: they belong into a file that only the device's owner can read, and are of no use once
the epoch is over.
"""

from tessera.common.secure.device import SecureDevice
from tessera.common.secure.encoding import Reader, flags, header, number
from tessera.common.secure.keys import SEED, EpochKeys
from tessera.common.secure.messages import HASH, Announcement, Roster, Shares
from tessera.common.secure.roster import Policy
from tessera.common.secure.shares import SHARE

_KIND = 9
_MOST = 2**32 - 1


def save(device: SecureDevice) -> bytes:
    """All that the device has to know to go on."""
    parts = [header(_KIND), device.keys.seed, _sized(device.announcement.write())]
    parts += [_sized(b"" if one is None else one.write()) for one in (device.roster, device.shares)]
    if device.roster is not None:
        parts += [number(device.place, 1), number(bool(device.present), 1), flags(device.present)]
        parts.append(flags([at in device.held for at in range(len(device.roster.members))]))
        parts += [device.held[at] for at in sorted(device.held)]
    parts.append(flags([ask in device.masked for ask in range(device.asks)]))
    parts.append(flags([ask in device.unmasked for ask in range(device.asks)]))
    parts += [device.masked[ask] for ask in sorted(device.masked)]
    parts += [flags(device.unmasked[ask]) for ask in sorted(device.unmasked)]
    return b"".join(parts)


def load(data: bytes, policy: Policy) -> SecureDevice:
    """Read what `save` wrote. Raises `SecureSumError` for anything else."""
    reader = Reader(data, "state of a device", _KIND)
    keys = EpochKeys(reader.take(SEED))
    device = SecureDevice(policy, keys, Announcement.read(_take(reader)))
    if roster := _take(reader):
        device.roster = Roster.read(roster)
    if shares := _take(reader):
        device.shares = Shares.read(shares)
    n = 0
    if device.roster is not None:
        n = len(device.roster.members)
        device.place = reader.number(1, 0, n - 1, "the device's place")
        device.present = reader.flags(n) if reader.number(1, 0, 1, "whether shares came") else ()
        held = reader.flags(n)
        device.held = {at: reader.take(2 * SHARE * device.asks) for at in range(n) if held[at]}
    masked, unmasked = reader.flags(device.asks), reader.flags(device.asks)
    device.masked = {ask: reader.take(HASH) for ask in range(device.asks) if masked[ask]}
    device.unmasked = {ask: reader.flags(n) for ask in range(device.asks) if unmasked[ask]}
    reader.end()
    return device


def _sized(content: bytes) -> bytes:
    return number(len(content), 4) + content


def _take(reader: Reader) -> bytes:
    return reader.take(reader.number(4, 0, _MOST, "a length"))
