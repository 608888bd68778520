"""Adds up what devices send so that a server sees the sum of a group, and nothing of any one device. This is the protocol.

It is that of Bonawitz et al. (2017), *Practical Secure Aggregation for Privacy-Preserving Machine Learning*, with keys and
shares provided for an epoch of E asks at once (80 at most), among groups as in Bell et al. (2020), *Secure Single-Server
Aggregation with (Poly)Logarithmic Overhead* (SecAgg+), each a complete graph. No cryptography is invented: X25519, HKDF-SHA256,
AES-256-CTR, AES-256-GCM, Ed25519 and ECDSA on P-384 are those of the package `cryptography`, Shamir's shares those of
`pycryptodome`.

**Messages** in a group of n of N devices; t = ceil(2n / 3). Bytes are beside the run's name; the last two columns are for
E = 80, and n = 10 of N = 20, n = 64 of N = 64.

| stage | message | bytes | n = 10 | n = 64 |
|---|---|---|---|---|
| keys, once an epoch | down, `KeysRequest`: run, epoch, E | 10 | 10 | 10 |
| | up, `Announcement`: E + 2 public keys, people, signature | 223 + 32 E | 2.8 kB | 2.8 kB |
| shares, once an epoch | down, `Roster`: its announcements, all hashes | 10 + 32 N + n (225 + 32 E) | 28 kB | 180 kB |
| | up, `Shares`: an envelope for each other member | 39 + 16 E + (n - 1)(28 + 32 E) | 25 kB | 164 kB |
| | down, `Delivery`: the envelopes for one device | 39 + n / 8 + (n - 1)(28 + 32 E) | 23 kB | 163 kB |
| each ask | up, `MaskedUpload` | 102 + 4 or 8 a number | | |
| | down, `UnmaskRequest`: who answered, with their signatures | 70 + n / 8 + 64 n | 712 | 4.2 kB |
| | up, `UnmaskReply`: a share of each member | 7 + n / 8 + 16 n | 169 | 1.0 kB |

A `Delivery` can travel with the first ask, and the `UnmaskRequest` of an ask with the next: two trips an epoch, and at most two
an ask.

**What a device sends in ask a** is, in whole numbers modulo 2^32 or 2^64 (`fixed_point`):
x + PRG(b) + sum over members v after it of PRG(s_v) - sum over members v before it of PRG(s_v).
b is a seed of its own for this ask, and s_v is what X25519 gives with the key of v for this ask. Every PRG is keyed through
HKDF with the ask's context: the hash of task, tensors, roster, who is present, ask and layout (`masks`). Of those who answered,
the s cancel out, and t members' shares of each b take the rest off. Where v was lost, t members give shares of the
16 bytes behind its key instead, and the server takes off the masks it had with the others. Each ask has keys of its own, so a
lost device's key opens nothing else.

**Files:** `messages` and `encoding`, what travels; `keys`, all of them from one seed a device and epoch; `shares`; `masks`;
`fixed_point`; `groups`, who is with whom, and `roster`, whether a device believes it; `device` and `device_state`, the device's
side; `group`, the server's.

**What each side learns.** The server: who takes part, how many people each registered with, who answered which ask, and the sum
over those who did. A device: its group's public keys and numbers of people, the number of all devices, and who answered.
A device does not help to unmask a sum of fewer than t members or of too few people, nor a second list for one ask, and it masks
nothing twice under one ask. One that is sent another task or other tensors than the rest, or told of others present, has masks
that do not cancel: what the server adds up is noise. It signs what it answered, too, so that no other device counts it in.

**What it rests on, and what it does not do.**
- Fewer than n / 3 members tell the server their secrets: with 3 devices none may, with 16 five. Then no seed and key of one
  device are both known, and no single device's upload.
- A server can name different lists of those who answered to different members. It still gets one sum an ask, but perhaps over
  no more than n - n (n - t) / t members, half of the group, where each one's list had two thirds; over fewer where some members
  work with it. So count on half of the people asked for. Bonawitz et al. close this with one more trip, in which devices sign
  the list.
- A server that may invent devices can surround one. So a device takes groups of nodes whose keys it knows (`Policy.admit`):
  those on a list that an operator signed, or those it was first told of and fewer than a third of others
  (`tessera.client.owner.known_keys`). The list of all keys comes beside the roster.
  The numbers of people are as devices state them. And a server can leave devices out until it likes the draw of groups.
- A hostile device can send any x within the layout's range, and can make its group's sums fail. Wrong shares are found and
  named, by the keys announced and the check values sent with the shares; who lied, their maker or their holder, is not known.
- A device's state must not go back to an older copy within an epoch: it could answer an ask twice, and the difference of two
  answers under the same masks is not hidden.
"""
