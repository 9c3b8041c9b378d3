"""Chooses alpha and beta of a Tip-Adapter cache: on its own photos, held out one at a time, or on validation photos.

One search for exports and for taught bundles, with numpy alone. A photo that is held out takes its keys out of the
cache. Its class then has S-1 keys where the others have S, so what is left of the class counts S/(S-1) times: without
that the search sees the cache doing worse than it does, the more the fewer photos there are, and leaves it out.

The grid is in units of the data, so that it fits any model and any classes:

    beta = u / (how far cosines of photos of different classes spread)
    alpha = v (how far text logits spread) / (u times what the cache says of a wrong class, on average)

With few photos many settings are equally right by chance. So each counts the mean of itself and its neighbours, and
next to that a prior: u around S^0.3 and v around 0.07 S, worth about two photos. With one photo per class, where
nothing can be held out, the prior alone decides. How well that does: docs/methods.md.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

# Where no class but one has keys, so that no spread can be measured: Tip-Adapter's published alpha, and a usual beta.
START = {"alpha": 1.0, "beta": 5.5}
# Keys that are nearer than this are of the same picture: no other photo is as near, and rounding is 1e-6.
SAME_PICTURE = 0.99999
US = np.geomspace(0.15, 5.0, 15)
VS = np.geomspace(0.01, 10.0, 21)
# The prior: its place with one photo per class, how that grows with the photos, how wide it is, how much it counts.
PRIOR_U, PRIOR_V, GROWTH_U, GROWTH_V = 1.0, 0.07, 0.3, 1.0
WIDTH_U, WIDTH_V, PRIOR_PHOTOS = 0.8, 1.0, 2.0
# Where the best lies on an edge, the grid grows by so many steps, as long as alpha and beta stay in a graph's range.
_MORE, _MOST_GROWTHS = 4, 8
MOST_ALPHA, MOST_BETA = 1000.0, 100.0
# Cosines of different classes lie so many of their spreads below 1 (six sets of features); counts as so many pairs.
_USUAL_SPREADS, _USUAL_PAIRS, _LEAST_SPREAD = 4.5, 10.0, 1e-3
# Above so many exponentials the photos that are judged are sampled evenly: about half a second on one core.
_MOST_EXPONENTIALS = 1e9
# Photos times keys at a time: what is worked on stays in a core's cache.
_CHUNK_VALUES, _LEAST_PHOTOS = 1 << 20, 16
# A cache is left out where it makes more photos wrong than right by more than so many standard deviations of chance.
_DEVIATIONS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """The keys.

    Attributes:
        keys: float32 [M,D], L2-normalised, in any order.
        owners: int64 [M], class index of each.
        pictures: int64 [M], the same number for keys of the same picture; None where cosines have to tell.
    """

    keys: Float32
    owners: Int64
    pictures: Int64 | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photos:
    """What the cache is judged on.

    Attributes:
        features: float32 [V,D], L2-normalised.
        truth: int64 [V], class index of each.
        base: float32 [V,K], their logits without a cache.
        pictures: int64 [V], as in the cache; None where cosines have to tell.
        are_keys: whether each lies in the cache itself, and is judged by what is left without it.
    """

    features: Float32
    truth: Int64
    base: Float32
    pictures: Int64 | None = None
    are_keys: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        alpha: weight of the cache.
        beta: sharpness of the cache.
        photos: how many were judged; 0 where the prior alone decided.
        right_without: how many of them are answered right without a cache.
        right_with: and with it.
        pays: whether the cache is worth its place: not where every photo is right with it and without it, nor where it
            makes more photos wrong than right, beyond chance.
        at_edge: parameters whose best value is the last that the grid could grow to.
        curve: for each beta that was tried its best alpha, and the share of photos that is then right.
    """

    alpha: float
    beta: float
    photos: int
    right_without: int
    right_with: int
    pays: bool
    at_edge: tuple[str, ...]
    curve: tuple[dict[str, float], ...]


def choose(
    cache: Cache,
    photos: Photos,
    *,
    most_exponentials: float = _MOST_EXPONENTIALS,
    told: Callable[[int, int], None] | None = None,
) -> Choice:
    """Choose alpha and beta; the same photos always give the same.

    Args:
        cache: the keys, of two classes at least.
        photos: to judge on. Of those that are keys, only photos of classes with two or more are counted.
        most_exponentials: above which the photos are sampled evenly.
        told: of the steps done and all of them, before the first and after each.
    """
    search = _Search(cache, photos, most_exponentials, told)
    us, vs, shots = US, VS, len(cache.keys) / len(np.unique(cache.owners))
    growths = 0
    while True:
        score, alphas = search.scored(us, vs, shots)
        row, column = np.unravel_index(int(score.argmax()), score.shape)
        edges = _edges(int(row), len(us)), _edges(int(column), len(vs))
        if not any(edges) or growths == _MOST_GROWTHS:
            break
        growths += 1
        us, vs = _grown(us, edges[0]), _grown(vs, edges[1])
    u, alpha = float(us[row]), _rounded(float(alphas[row, column]))
    with_cache, without = search.right(u, alpha), search.right_without
    changed, worse = int((without ^ with_cache).sum()), int((without & ~with_cache).sum())
    return Choice(
        alpha=alpha,
        beta=_rounded(search.beta(u)),
        photos=len(without),
        right_without=int(without.sum()),
        right_with=int(with_cache.sum()),
        pays=not len(without)
        or (not (without & with_cache).all() and worse - (changed - worse) <= _DEVIATIONS * changed**0.5),
        at_edge=tuple(name for name, edge in zip(("beta", "alpha"), edges, strict=True) if edge),
        curve=search.curve(us, alphas),
    )


def judged_rows(counted: Bool, keys: int, most_exponentials: float = _MOST_EXPONENTIALS) -> Int64:
    """Return which photos are judged: those that count, evenly sampled; all alike where none counts.

    Args:
        counted: bool [V], whether something of a photo's class is left where it is held out.
        keys: of the cache.
        most_exponentials: that the search may take.
    """
    # Where nothing can be counted the photos still say how far everything spreads.
    rows = np.flatnonzero(counted) if counted.any() else np.arange(len(counted))
    judged: Int64 = rows[_evenly(len(rows), int(most_exponentials / (len(US) * keys)))]
    return judged


class _Search:
    """Between which alphas each photo is right, for every u that was asked."""

    def __init__(self, cache: Cache, photos: Photos, most: float, told: Callable[[int, int], None] | None) -> None:
        order = np.argsort(cache.owners, kind="stable")
        self._keys, self._owners = cache.keys[order], cache.owners[order]
        self._pictures = None if cache.pictures is None else cache.pictures[order]
        self._present, self._starts = np.unique(self._owners, return_index=True)
        counts = np.bincount(self._owners, minlength=photos.base.shape[1])
        counted = counts[photos.truth] > 1 if photos.are_keys else np.full(len(photos.truth), fill_value=True)
        if self._pictures is not None and photos.are_keys:
            different = np.unique(np.stack([self._owners, self._pictures]), axis=1)[0]
            counted &= np.bincount(different, minlength=len(counts))[photos.truth] > 1
        rows = judged_rows(counted, len(self._keys), most)
        self._photos = dataclasses.replace(
            photos,
            features=photos.features[rows],
            truth=photos.truth[rows],
            base=photos.base[rows],
            pictures=None if photos.pictures is None else photos.pictures[rows],
        )
        self.counted = counted[rows]
        self.right_without: Bool = (self._photos.base.argmax(axis=1) == self._photos.truth)[self.counted]
        self._counts, self._told = counts, told
        self._at_once = max(_LEAST_PHOTOS, _CHUNK_VALUES // len(self._keys))
        self._known: dict[float, tuple[Float32, Float32, float]] = {}
        self._text_spread = max(float(self._photos.base.std(axis=1).mean()), _LEAST_SPREAD)
        self._spread = self._key_spread()

    def beta(self, u: float) -> float:
        """Beta of a u."""
        return u / self._spread

    def scored(self, us: Float64, vs: Float64, shots: float) -> tuple[Float64, Float64]:
        """How good every setting is, in photos, and its alpha: float64 [U,V] both."""
        self._ask(us)
        found = [self._known[u] for u in us.tolist()]
        other = np.array([each[2] for each in found])
        alphas: Float64 = vs * self._text_spread / (us * other)[:, None]
        counts = np.stack(
            [
                ((row[:, None] > low[self.counted]) & (row[:, None] < high[self.counted])).sum(axis=1)
                for row, (low, high, _) in zip(alphas, found, strict=True)
            ]
        ).astype(np.float64)
        score = _with_neighbours(counts) + PRIOR_PHOTOS * _prior(us, vs, shots)
        admitted = (alphas <= MOST_ALPHA) & (us[:, None] / self._spread <= MOST_BETA)
        if not admitted.any():
            # Photos that hardly differ: the mildest setting is the only sensible one.
            admitted[0, 0] = True
        return np.where(admitted, score, -np.inf), np.minimum(alphas, MOST_ALPHA)

    def right(self, u: float, alpha: float) -> Bool:
        """Which of the counted photos are right."""
        low, high, _ = self._known[u]
        found: Bool = ((alpha > low) & (alpha < high))[self.counted]
        return found

    def curve(self, us: Float64, alphas: Float64) -> tuple[dict[str, float], ...]:
        """For each beta its best alpha."""
        points = []
        for u, row in zip(us.tolist(), alphas, strict=True):
            shares = [float(self.right(u, alpha).mean()) if self.counted.any() else 0.0 for alpha in row.tolist()]
            best = int(np.argmax(shares))
            points.append({"beta": _rounded(self.beta(u)), "alpha": _rounded(row[best]), "accuracy": shares[best]})
        return tuple(points) if self.counted.any() else ()

    def _key_spread(self) -> float:
        """Standard deviation of cosines between photos and keys of other classes; few are joined by what is usual."""
        total = squares = pairs = 0.0
        for affinity, rows in self._affinities():
            others = self._owners[None, :] != self._photos.truth[rows, None]
            values = affinity[others].astype(np.float64)
            total, squares, pairs = total + values.sum(), squares + (values**2).sum(), pairs + len(values)
        if not pairs:
            return START["beta"] ** -1
        mean = total / pairs
        usual = max(1.0 - mean, 0.0) / _USUAL_SPREADS
        variance = (max(squares - pairs * mean**2, 0.0) + _USUAL_PAIRS * usual**2) / (pairs + _USUAL_PAIRS)
        return max(float(variance**0.5), _LEAST_SPREAD)

    def _affinities(self) -> Iterator[tuple[Float32, slice]]:
        """Cosines of some photos with all keys, and which photos."""
        for start in range(0, len(self._photos.truth), self._at_once):
            rows = slice(start, start + self._at_once)
            yield self._photos.features[rows] @ self._keys.T, rows

    def _ask(self, us: Float64) -> None:
        """Find, for each new u, between which alphas each photo is right, and what a wrong class is given."""
        new = [u for u in us.tolist() if u not in self._known]
        if not new:
            return
        photos = self._photos
        low = np.empty((len(new), len(photos.truth)), np.float32)
        high, others = np.empty_like(low), np.zeros(len(new))
        total = -(-len(photos.truth) // self._at_once)
        # Where the grid grows, a few rows more are quick.
        told = self._told if not self._known else None
        if told is not None:
            told(0, total)
        for done, (affinity, rows) in enumerate(self._affinities(), start=1):
            truth, weight = photos.truth[rows], self._hold_out(affinity, rows)
            is_wrong = (np.arange(len(self._counts))[None, :] != truth[:, None]) & (self._counts > 0)
            for row, u in enumerate(new):
                cached = self._cached(affinity, u, truth, weight)
                low[row, rows], high[row, rows] = _interval(photos.base[rows], cached, truth)
                others[row] += cached[is_wrong].sum(dtype=np.float64)
            if told is not None:
                told(done, total)
        wrong = (len(self._present) - np.isin(photos.truth, self._present)).sum()
        for row, u in enumerate(new):
            mean = others[row] / max(1, wrong)
            self._known[u] = low[row], high[row], max(float(mean), float(np.finfo(np.float32).tiny))

    def _hold_out(self, affinity: Float32, rows: slice) -> Float32:
        """Take a photo's own keys out of its row, and return how much more the rest of its class counts, [V]."""
        photos = self._photos
        weight = np.ones(len(affinity), np.float32)
        if not photos.are_keys:
            return weight
        if self._pictures is None or photos.pictures is None:
            own = affinity > SAME_PICTURE
        else:
            own = photos.pictures[rows, None] == self._pictures[None, :]
        affinity[own] = -np.inf
        truth = photos.truth[rows]
        held = (own & (self._owners[None, :] == truth[:, None])).sum(axis=1)
        left = self._counts[truth] - held
        np.divide(self._counts[truth], left, out=weight, where=left > 0, casting="unsafe")
        return weight

    def _cached(self, affinity: Float32, u: float, truth: Int64, weight: Float32) -> Float32:
        """What the cache says of each class before alpha, float32 [V,K]."""
        exponentials = np.exp(np.float32(self.beta(u)) * (affinity - 1))
        cached = np.zeros((len(affinity), self._photos.base.shape[1]), np.float32)
        cached[:, self._present] = np.add.reduceat(exponentials, self._starts, axis=1)
        cached[np.arange(len(truth)), truth] *= weight
        return cached


def _interval(base: Float32, cached: Float32, truth: Int64) -> tuple[Float32, Float32]:
    """Between which alphas the true class leads all others: [V] and [V]."""
    rows = np.arange(len(truth))
    # By how much the true class leads without a cache, and with it for each unit of alpha.
    lead = base[rows, truth][:, None] - base
    gain = cached[rows, truth][:, None] - cached
    # Against itself the true class always wins.
    lead[rows, truth], gain[rows, truth] = np.inf, 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        level = -lead / gain
    lowest = np.where(gain > 0, level, -np.inf).max(axis=1)
    highest = np.where(gain < 0, level, np.inf).min(axis=1)
    # Who is not ahead of another class that the cache treats alike, never is.
    lowest[((gain == 0) & (lead <= 0)).any(axis=1)] = np.inf
    return lowest, highest


def _prior(us: Float64, vs: Float64, shots: float) -> Float64:
    """The logarithm of the prior, 0 at its best: float64 [U,V]."""
    u = (np.log(us) - np.log(PRIOR_U * shots**GROWTH_U)) / WIDTH_U
    v = (np.log(vs) - np.log(PRIOR_V * shots**GROWTH_V)) / WIDTH_V
    prior: Float64 = -(u[:, None] ** 2 + v[None, :] ** 2) / 2
    return prior


def _with_neighbours(counts: Float64) -> Float64:
    """The mean over each setting and the eight around it; beyond an edge counts what lies on it."""
    padded = np.pad(counts, 1, mode="edge")
    rows, columns = counts.shape
    parts = [padded[row : row + rows, column : column + columns] for row in range(3) for column in range(3)]
    mean: Float64 = np.mean(parts, axis=0)
    return mean


def _edges(place: int, length: int) -> int:
    """-1 at the first place, 1 at the last, else 0."""
    return -1 if place == 0 else int(place == length - 1)


def _grown(values: Float64, edge: int) -> Float64:
    """More steps of the same ratio beyond an edge."""
    if edge == 0:
        return values
    more = (values[1] / values[0]) ** np.arange(1, _MORE + 1)
    return np.concatenate([values[0] / more[::-1], values] if edge < 0 else [values, values[-1] * more])


def _rounded(value: float) -> float:
    """To four digits: what a manifest shows is what is computed with."""
    return float(f"{value:.4g}")


def _evenly(count: int, most: int) -> Int64:
    wanted = min(count, max(1, most))
    return np.arange(wanted) * count // max(1, wanted)
