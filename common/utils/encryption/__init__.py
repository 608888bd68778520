"""Encrypts a device's private files at rest: each as a whole, by AES-256-GCM with a nonce of its own.

A folder is encrypted where it holds

    encryption.json     how: scrypt of a passphrase or HKDF of a key file, and the folder's own key, wrapped by that

`tessera.common.utils.atomic_files` seals what it writes there and opens what it reads, so that no other code knows of it. A
file that lies there in clear is read as it is, and sealed when it is written next: so a conversion may stop half-way.

It keeps what was learnt and done from whoever gets the disk, or a copy of the folder, without the key. It keeps nothing from
who can read the memory of a process that has the key; and names, sizes and times of files are there for all to see.
"""
