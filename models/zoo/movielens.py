"""The MovieLens rows as features of both sides, time-ordered, and recorded requests."""

from __future__ import annotations

import csv
import datetime
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .schema import CROSS, DENSE, ID, ITEM, SEQUENCE, USER, Arrays, Feature, Schema

DATA = Path(__file__).resolve().parent.parent / "data" / "movielens_sample.csv"
HISTORY = 16


@dataclass(frozen=True)
class Movie:
    """A candidate: vocabulary ids, numbers, and the set of its genres."""

    id: int
    genre: int
    genre2: int
    decade: int
    stats: tuple[float, float]
    genres: frozenset[str]


class MovieLens:
    """200 ratings; a row is a request of its user at its time, for its movie.

    The sample holds 193 users for 200 ratings, so a user's history is the last ratings of 4 and
    more, before the request, of users of the same gender, the user's own among them.
    """

    def __init__(self, path: Path = DATA) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            self.rows = sorted(csv.DictReader(file), key=lambda row: int(row["timestamp"]))
        self.start = int(self.rows[0]["timestamp"])
        counts = Counter(g for row in self.rows for g in row["genres"].split("|"))
        self.genre_ids = {
            g: i + 1 for i, (g, _) in enumerate(sorted(counts.items(), key=_by_count))
        }
        self.vocabularies = {
            key: {v: i + 1 for i, v in enumerate(sorted({row[key] for row in self.rows}))}
            for key in ("user_id", "gender", "age", "occupation", "movie_id")
        }
        self.movies = {row["movie_id"]: self._movie(row) for row in self.rows}
        self.catalogue = [self.movies[key] for key in sorted(self.movies)]

    def schema(self) -> Schema:
        """Every feature this data gives, user side first."""
        size = {key: len(ids) + 1 for key, ids in self.vocabularies.items()}
        genres = len(self.genre_ids) + 1
        return Schema(
            features=(
                Feature("user_id", USER, ID, size["user_id"]),
                Feature("user_gender", USER, ID, size["gender"]),
                Feature("user_age", USER, ID, size["age"]),
                Feature("user_occupation", USER, ID, size["occupation"]),
                Feature("user_zip", USER, ID, 11),
                Feature("user_stats", USER, DENSE, width=3),
                Feature("ctx_hour", USER, ID, 25),
                Feature("ctx_weekday", USER, ID, 8),
                Feature("hist_movie", USER, SEQUENCE, width=HISTORY, table="item_id"),
                Feature("hist_genre", USER, SEQUENCE, width=HISTORY, table="item_genre"),
                Feature("item_id", ITEM, ID, size["movie_id"]),
                Feature("item_genre", ITEM, ID, genres),
                Feature("item_genre2", ITEM, ID, genres),
                Feature("item_decade", ITEM, ID, 11),
                Feature("item_stats", ITEM, DENSE, width=2),
                Feature("cross_genre_match", CROSS, DENSE, width=2),
            )
        )

    def labels(self) -> np.ndarray:
        """`[200, 2]` float32: liked (4 and more), loved (5)."""
        ratings = np.array([int(row["rating"]) for row in self.rows])
        return np.stack([ratings >= 4, ratings >= 5], axis=1).astype(np.float32)

    def training(self) -> Arrays:
        """All rows, each with its own movie: `[200, ...]`."""
        parts = [self.request(i, [self.movies[row["movie_id"]]]) for i, row in enumerate(self.rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def candidates(self, row: int, count: int, rng: np.random.Generator) -> list[Movie]:
        """The row's own movie and `count - 1` others, none twice."""
        own = self.movies[self.rows[row]["movie_id"]]
        others = [movie for movie in self.catalogue if movie != own]
        return [own] + [others[i] for i in rng.permutation(len(others))[: count - 1]]

    def request(self, row: int, movies: list[Movie]) -> Arrays:
        """User inputs of one row `[1, ...]`, item and cross inputs `[len(movies), ...]`."""
        past = self._history(row)
        arrays = {k: np.asarray([v]) for k, v in self._user(row, past).items()}
        arrays["item_id"] = np.array([m.id for m in movies])
        arrays["item_genre"] = np.array([m.genre for m in movies])
        arrays["item_genre2"] = np.array([m.genre2 for m in movies])
        arrays["item_decade"] = np.array([m.decade for m in movies])
        arrays["item_stats"] = np.array([m.stats for m in movies])
        arrays["cross_genre_match"] = np.array([_match(m, past) for m in movies])
        return {
            name: a.astype(np.float32 if a.dtype.kind == "f" else np.int64)
            for name, a in arrays.items()
        }

    def _movie(self, row: dict[str, str]) -> Movie:
        genres = row["genres"].split("|")
        match = re.search(r"\((\d{4})\)\s*$", row["title"])
        year = int(match.group(1)) if match else 1990
        second = self.genre_ids[genres[1]] if len(genres) > 1 else 0
        decade = min(max((year - 1910) // 10 + 1, 1), 10)
        stats = ((year - 1985) / 15.0, len(genres) / 3.0)
        ids = self.vocabularies["movie_id"][row["movie_id"]], self.genre_ids[genres[0]]
        return Movie(*ids, second, decade, stats, frozenset(genres))

    def _history(self, row: int) -> list[Movie]:
        gender = self.rows[row]["gender"]
        liked = [r for r in self.rows[:row] if r["gender"] == gender and int(r["rating"]) >= 4]
        return [self.movies[r["movie_id"]] for r in liked[-HISTORY:]]

    def _user(self, row: int, past: list[Movie]) -> dict[str, object]:
        source = self.rows[row]
        time = int(source["timestamp"])
        moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
        before = [int(r["rating"]) for r in self.rows[:row] if r["age"] == source["age"]]
        mean = sum(before) / len(before) if before else 3.5
        pad = [0] * (HISTORY - len(past))
        ids = {
            f"user_{key}": self.vocabularies[column][source[column]]
            for key, column in (("id", "user_id"), ("gender", "gender"), ("age", "age"))
        }
        return {
            **ids,
            "user_occupation": self.vocabularies["occupation"][source["occupation"]],
            "user_zip": int(source["zip"][0]) + 1,
            "user_stats": [float(np.log1p(len(before))), mean / 5.0, (time - self.start) / 3.2e7],
            "ctx_hour": moment.hour + 1,
            "ctx_weekday": moment.weekday() + 1,
            "hist_movie": [m.id for m in past] + pad,
            "hist_genre": [m.genre for m in past] + pad,
        }


def _by_count(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]


def _match(movie: Movie, past: list[Movie]) -> tuple[float, float]:
    """Shares of the history with the movie's first genre, and with any of its genres."""
    if not past:
        return 0.0, 0.0
    first = sum(p.genre == movie.genre for p in past) / len(past)
    return first, sum(bool(p.genres & movie.genres) for p in past) / len(past)
