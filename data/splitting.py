"""Splits reviews into training and validation, and selects subsets, by the hash of their ids."""

import hashlib

import pandas as pd

from data.labels import SENTIMENT


def hash_key(key: str) -> int:
    """Hashes a text to a pseudo-random integer of 60 bits, the same on every machine."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:15], 16)


def hash_rank(ids: pd.Series, salt: str) -> pd.Series:
    """Hashes each id to an integer of 60 bits, which orders the reviews. salt: another order"""
    return pd.Series([hash_key(f"{salt}:{key}") for key in ids], index=ids.index, dtype="int64")


def hash_order(frame: pd.DataFrame, salt: str) -> pd.Series:
    """Returns the position of each review, 0 … N - 1, in the order of the hashes of its id. salt: another order

    Reviews with equal ids are in the order of their texts, so that no order depends on that of the file.
    """
    keys = hash_rank(frame["id"], salt).to_frame("hash")
    if keys["hash"].duplicated().any():
        keys["review"] = frame["review"]
    return pd.Series(range(len(keys)), index=keys.sort_values([*keys], kind="stable").index).reindex(frame.index)


def split_train(
    frame: pd.DataFrame, fraction: float = 0.2, seed: int = 42, labels: tuple[str, ...] = SENTIMENT
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits reviews into (training, validation), stratified by sentiment. labels: the class names, for messages.

    The hash of seed and id decides: the split is the same on every machine and for any order of the file.
    Raises ValueError if a split would be empty or if training has fewer than two classes. A class with fewer than three
    reviews has none in validation.
    """
    frame = frame.reset_index(drop=True)
    order = hash_order(frame, str(seed))
    validation = pd.Series(False, index=frame.index)
    for _, group in order.groupby(frame["sentiment"]):
        validation[group.sort_values().index[: round(len(group) * fraction)]] = True
    train, held_out = frame[~validation], frame[validation]
    if not len(held_out) or train["sentiment"].nunique() < 2:
        counts = {labels[number]: count for number, count in frame["sentiment"].value_counts().items()}
        rule = "a label needs three to give one to validation; add reviews, or name a file of them with --validation"
        if len(counts) < 2:
            rule = "training needs two labels; add reviews of another one"
        raise ValueError(f"cannot split {len(frame)} reviews with labels {counts} into training and validation: {rule}")
    return train.reset_index(drop=True), held_out.reset_index(drop=True)


def subset(frame: pd.DataFrame, count: int, seed: int, flag: str = "--train-reviews") -> pd.DataFrame:
    """Selects `count` reviews, balanced between labels as far as possible, by the hash of seed and id.

    A larger subset contains every smaller one. flag: the name of the count in error messages.
    Raises ValueError if `count` is below the number of labels or above the number of reviews.
    """
    frame = frame.reset_index(drop=True)  # a concatenated frame repeats its index
    labels = sorted(frame["sentiment"].unique())
    if not len(frame):
        raise ValueError(f"{flag} {count}: there are no such reviews")
    if not len(labels) <= count <= len(frame):
        raise ValueError(f"{flag} {count} is outside {len(labels)} … {len(frame)}")
    rank = hash_order(frame, f"subset {seed}").groupby(frame["sentiment"]).rank()  # 1, 2, … of each label
    order = pd.DataFrame({"rank": rank, "label": frame["sentiment"]}).sort_values(["rank", "label"])
    return frame.loc[sorted(order.index[:count])].reset_index(drop=True)
