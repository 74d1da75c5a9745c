"""Whose slices go where, under which name: the split by subject and the pseudonyms."""

import argparse
import hashlib
import hmac
import random
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import replacing
from .sources import Source

SPLITS = ("train", "validation", "test")
MIN_HELD_OUT = 4  # subjects that intervals over subjects need: a quarter of them is one


def split_subjects(strata: Mapping[str, str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Assign every subject to a split, each stratum in proportion to `shares` as far as whole subjects allow.

    Args:
        strata: subject id -> label, any text.
        shares: of train, validation and test; they add up to one.
        seed: the only source of chance: the same ids, labels and seed give the same split.

    Returns:
        subject id -> "train", "validation" or "test".
    """
    subjects = sorted(strata)
    random.Random(seed).shuffle(subjects)
    subjects.sort(key=lambda subject: strata[subject])  # stable: random within a stratum
    # What is owed to a split accumulates along the strata, so that both each stratum and the whole come out even.
    owed = np.zeros(len(SPLITS))
    assigned = {}
    for subject in subjects:
        owed += shares
        split = int(owed.argmax())
        owed[split] -= 1
        assigned[subject] = SPLITS[split]
    return assigned


def read_salt(path: Path) -> bytes:
    """The secret in `path`; a new random one is written there, readable by its owner alone, when there is none."""
    if not path.exists():
        with replacing(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(32) + "\n")
    salt = path.read_bytes().strip()
    if len(salt) < 16:
        raise InputError(
            f"the salt in {path} is shorter than 16 characters; pass a --salt_file that does not exist yet."
        )
    return salt


def pseudonym(subject: str, salt: bytes) -> str:
    """HMAC-SHA256 of a subject id, 16 hexadecimal digits: without the salt, known ids cannot be tried out."""
    return hmac.new(salt, subject.encode(), hashlib.sha256).hexdigest()[:16]


def published_names(args: argparse.Namespace, source: Source, subjects: Iterable[str]) -> dict[str, str]:
    """What each subject is called in the set: a pseudonym, unless the subjects are no people or --keep_subject_ids."""
    if not source.people or args.keep_subject_ids:
        return {subject: subject for subject in subjects}
    salt = read_salt(args.salt_file or args.output_dir.with_name(args.output_dir.name + ".salt"))
    return {subject: pseudonym(subject, salt) for subject in subjects}
