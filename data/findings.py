"""What a careful person would find wrong with tile files: findings from a survey of them.

Every rule is one function of the survey; its thresholds stand beside it with the reason. What can be found of swapped
bands, and what not, is said at `swapped_bands`; of masks that are shifted, in `data/alignment.py`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from console import progress
from data.alignment import Alignment, Read, align
from data.normalisation import published
from data.places import overlaps
from data.survey import BandFacts, SplitFacts, Survey, TileFacts
from data.tiles import IGNORE, PUBLISHED_REGIONS
from data.windows import Window

Mask = NDArray[np.bool_]
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

SPECTRUM = ("blue", "green", "red", "nir", "swir1", "swir2")
"""Names of optical bands by wavelength."""

_LISTED = 8
_GROUPS = 12  # scenes of which the alignment is looked at
_WINDOWS = 24  # windows of a scene


@dataclass(frozen=True)
class Finding:
    """Something to look at in tile files.

    `error`: trained on, it makes the model or its scores wrong; `warning`: it probably does; `note`: good to know.
    `tiles` are (split, name) of those concerned, if it is about some; `evidence` has the numbers, `remedy` what to do.
    `alignment` is what a shifted mask was found by.
    """

    severity: Severity
    what: str
    evidence: str
    remedy: str
    tiles: tuple[tuple[str, str], ...] = ()
    alignment: Alignment | None = None


def find(survey: Survey) -> list[Finding]:
    """Return the findings, the gravest first."""
    rules: list[Callable[[Survey], Iterator[Finding]]] = [
        unusable_tiles,
        differing_files,
        duplicates,
        overlapping_tiles,
        misaligned_masks,
        swapped_bands,
        values_of_bands,
        units,
        elevations,
        statistics,
        processing_levels,
        gaps,
        unseen_glacier,
        classes,
        labels,
        weak_masks,
        regions,
        splits,
    ]
    found = [finding for rule in progress(rules, "findings", unit="rule") for finding in rule(survey)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


# -- files and tiles -----------------------------------------------------------------------------------------


def unusable_tiles(survey: Survey) -> Iterator[Finding]:
    """Tiles whose arrays do not fit together, and those without a valid pixel."""
    for split, tile in survey.tiles():
        if tile.problems:
            yield Finding(
                "error",
                f"tile {tile.info.name} ({split.split}) can't be used",
                "; ".join(tile.problems),
                "prepare it again, or leave it out",
                ((split.split, tile.info.name),),
            )
    for split in survey.splits:
        empty = [tile for tile in split.tiles if not tile.problems and not tile.valid]
        if empty:
            yield _of_tiles(
                "error", f"{split.split}: {_count(empty)} without a valid pixel", split, empty,
                "training refuses them: leave them out, or correct the nodata value",
            )  # fmt: skip
        small = [tile for tile in split.tiles if 0 < tile.valid < 0.02 * tile.pixels]
        if small:
            yield _of_tiles(
                "note", f"{split.split}: {_count(small)} of which less than 2 % is valid", split, small,
                "patches of these are nearly all nodata: leave the tiles out",
            )  # fmt: skip


def differing_files(survey: Survey) -> Iterator[Finding]:
    """Splits that do not hold the same bands and classes, or are scaled differently."""
    if not survey.splits:
        return
    first = survey.splits[0]
    for other in survey.splits[1:]:
        for what, one, two in (
            ("modalities and bands", first.bands, other.bands),
            ("classes", [info.name for info in first.classes], [info.name for info in other.classes]),
        ):
            if one != two:
                yield Finding(
                    "error", f"{first.split} and {other.split} differ in {what}", f"{one} and {two}",
                    "prepare all splits with one command",
                )  # fmt: skip
        if first.statistics != other.statistics:
            yield Finding(
                "error", f"{first.split} and {other.split} are scaled with different statistics",
                " and ".join(split.statistics.fitted_on if split.statistics else "none" for split in (first, other)),
                "prepare all splits with one command: statistics are of the training split",
            )  # fmt: skip


def duplicates(survey: Survey) -> Iterator[Finding]:
    """Tiles with the same pixels."""
    same: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, tile in survey.tiles():
        if tile.digest and tile.valid:
            same[tile.digest].append((split.split, tile.info.name))
    across = [tiles for tiles in same.values() if len({split for split, _ in tiles}) > 1]
    within = [tiles for tiles in same.values() if len(tiles) > 1 and len({split for split, _ in tiles}) == 1]
    for severity, groups, where in (("error", across, "in different splits"), ("warning", within, "in one split")):
        if groups:
            yield Finding(
                "error" if severity == "error" else "warning",
                f"the same tile more than once, {where}: {_number(len(groups), 'tile')}",
                "; ".join(" = ".join(f"{split}/{name}" for split, name in tiles) for tiles in groups[:_LISTED]),
                "the scores are of what was trained on: leave the copies out"
                if severity == "error"
                else "they count twice in training: leave the copies out",
                tuple(tile for tiles in groups for tile in tiles),
            )


def overlapping_tiles(survey: Survey) -> Iterator[Finding]:
    """Tiles that share ground by their place."""
    placed = [(split.split, tile.info) for split, tile in survey.tiles() if not tile.problems]
    pairs = overlaps([info for _, info in placed])
    across = [pair for pair in pairs if placed[pair[0]][0] != placed[pair[1]][0]]
    within = [pair for pair in pairs if placed[pair[0]][0] == placed[pair[1]][0]]
    for severity, some in (("error", across), ("note", within)):
        if not some:
            continue
        names = [tuple(f"{placed[index][0]}/{placed[index][1].name}" for index in pair) for pair in some]
        across_splits = severity == "error"
        yield Finding(
            "error" if across_splits else "note",
            f"tiles overlap{' across splits' if across_splits else ' within a split'}: {_number(len(some), 'pair')}",
            "; ".join(f"{one} and {other}" for one, other in names[:_LISTED]) + ("; …" if len(names) > _LISTED else ""),
            "the same ground is trained on and scored: divide again, by blocks or regions"
            if across_splits
            else "their ground counts more than other: cut tiles without overlap if you did not mean it",
            tuple({(placed[index][0], placed[index][1].name): None for pair in some for index in pair}),
        )


# -- masks against images ------------------------------------------------------------------------------------


def misaligned_masks(survey: Survey) -> Iterator[Finding]:
    """Masks that fit their images better where they do not lie, by scene, else by region; over all splits."""
    groups: dict[str, list[tuple[SplitFacts, TileFacts, Window, int]]] = defaultdict(list)
    for split, tile in survey.tiles():
        for window, edges in tile.windows:
            scene = str(tile.info.attributes.get("scene") or "")
            groups[f"scene {scene}" if scene else f"region {tile.info.region or '(none)'}"].append(
                (split, tile, window, edges)
            )
    largest = sorted(groups, key=lambda key: -sum(edges for *_, edges in groups[key]))[:_GROUPS]
    for group in progress(largest, "alignment", unit="group"):
        chosen = _spread(groups[group])
        alignment = align(*_windows(chosen))
        if alignment is None or not alignment.off:
            continue
        yield Finding(
            "error",
            f"the masks of {group} are shifted by about {alignment.distance:.0f} pixels",
            f"their edges fit the image best {direction(alignment)} of where they lie, clearly better in "
            f"{alignment.clearness:.0%} of random samples of the pixels (bootstrap; {alignment.edges:,} edge pixels "
            f"in {_number(len(chosen), 'window')})",
            "open outlines and image together in a GIS. Usual causes: a wrong CRS or datum, an image that was not "
            "orthorectified, pixel centres taken for corners; outlines of another decade can look the same",
            tuple({(split.split, tile.info.name): None for split, tile, *_ in chosen}),
            alignment,
        )


def _spread(
    windows: Sequence[tuple[SplitFacts, TileFacts, Window, int]],
) -> list[tuple[SplitFacts, TileFacts, Window, int]]:
    """Return up to `_WINDOWS` windows, those with most edges, of as many tiles as possible."""
    by_tile: dict[tuple[str, str], list[tuple[SplitFacts, TileFacts, Window, int]]] = defaultdict(list)
    for entry in sorted(windows, key=lambda entry: -entry[-1]):
        by_tile[entry[0].split, entry[1].info.name].append(entry)
    ranked = [(rank, -entry[-1], entry) for entries in by_tile.values() for rank, entry in enumerate(entries)]
    return [entry for *_, entry in sorted(ranked, key=lambda item: item[:2])[:_WINDOWS]]


def _windows(
    chosen: Sequence[tuple[SplitFacts, TileFacts, Window, int]],
) -> tuple[list[Read], list[bool]]:
    bands = chosen[0][0].bands
    values = [not name.startswith(("elevation", "aspect")) for names in bands.values() for name in names]

    def read(split: SplitFacts, tile: TileFacts, window: Window) -> tuple[NDArray[np.float32], Mask, Mask]:
        file, name = split.file, tile.info.name
        valid, mask = file.valid(name, window), file.mask(name, window)
        arrays = [
            np.full((*mask.shape, len(names)), np.nan, np.float32)
            if modality in tile.absent
            else file.read(name, [modality], window)[modality]
            for modality, names in bands.items()
        ]
        stacked = np.concatenate(arrays, axis=-1)
        stacked[~(valid[..., None] & np.isfinite(stacked))] = np.nan
        return stacked, np.isin(mask, split.glacier_ids), valid & (mask != IGNORE)

    return [partial(read, split, tile, window) for split, tile, window, _ in chosen], values


def direction(alignment: Alignment) -> str:
    """Return where the mask fits best, seen from where it lies: "5 pixels up and 3 pixels left"."""
    parts = [
        f"{_number(abs(count), 'pixel')} {more if count > 0 else less}"
        for count, more, less in ((alignment.rows, "down", "up"), (alignment.columns, "right", "left"))
        if count
    ]
    return " and ".join(parts)


# -- values --------------------------------------------------------------------------------------------------


def swapped_bands(survey: Survey) -> Iterator[Finding]:
    """Bands whose names do not fit their values, among blue, green, red, nir, swir1 and swir2.

    Units do not matter for the first rule: neighbours in the spectrum resemble each other more than bands further
    apart, so that rank correlations fall with distance (the matrix is anti-Robinson; Robinson 1951,
    doi:10.2307/276978). The sum of what stands against this is compared with that after each exchange of two names.
    It can't tell four bands from the same ones read backwards, and plants, dark in red and bright just beyond, stand
    against it: nothing is said by it of blue–nir, green–red, and of bands that are neighbours in the infrared.
    The second rule needs bands in one unit: snow and ice are bright up to the near infrared and dark in the shortwave
    infrared; the brightest pixels of a glacier scene that say the reverse have it exchanged.
    The third: shadows are lit by the blue sky and seen through haze, so that the darkest pixels, as a share of the
    median, are brighter in blue than in red and in the near infrared.

    Measured on 24 synthetic scenes that had no part in choosing the margins, each by itself, with six bands and with
    blue to nir alone, on blue, green, red, swir1 of Landsat 8 (digital numbers), and on blue to nir of Landsat 7 (8
    bits): right names are never doubted. Every exchange with a shortwave infrared band is found, blue–nir and blue–red;
    of six bands green–nir and red–nir in all scenes, blue–green in 21; of four green–nir in 23, red–nir in 18,
    blue–green in 9; in up to a third of these another exchange is named. Green–red and swir1–swir2 are not found. Few
    tiles can say otherwise by chance: what only some of the splits say is a warning.
    """
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    tried: dict[str, list[str]] = defaultdict(list)
    for split in survey.splits:
        for modality, names in split.bands.items():
            present = [name for name in SPECTRUM if name in names]
            values = split.sample[modality][:, [names.index(name) for name in present]]
            values = values[np.isfinite(values).all(axis=-1)]
            if len(present) < 3 or len(values) < 500:
                continue
            tried[modality].append(split.split)
            swap = (
                _swap_by_level(present, values) or _swap_by_shadow(present, values) or _swap_by_order(present, values)
            )
            if swap is not None:
                one, other, evidence = swap
                found[modality, one, other].append((split.split, evidence))
    for (modality, one, other), entries in found.items():
        where = [split for split, _ in entries]
        others = [split for split in tried[modality] if split not in where]
        only = f" in {' and '.join(where)}, not in {' and '.join(others)}" if others else ""
        yield Finding(
            "warning" if others else "error", f"{one} and {other} of {modality} seem to be exchanged{only}",
            f"{entries[0][1]} ({entries[0][0]})",
            "look up the order of the bands in the files, and give their names in that order",
        )  # fmt: skip


_SWAP_GAIN = 0.08  # of the sum of what stands against the order: right names gain up to 0.05 by an exchange
_UNORDERED = {("blue", "nir"), ("green", "red"), ("nir", "swir1"), ("nir", "swir2"), ("swir1", "swir2")}
_SHADOW_RATIO = 0.85  # of blue to red or nir: from 1.2 up with right names, the reciprocal where they are exchanged
_SNOW_RATIO = 2.5  # rock is up to twice as bright in the shortwave infrared as in blue


def _swap_by_order(names: Sequence[str], values: NDArray[np.float32]) -> tuple[str, str, str] | None:
    if any(np.ptp(values, axis=0) == 0):
        return None
    ranks = np.stack([rankdata(band) for band in values.T])
    correlation = np.corrcoef(ranks)

    def against(order: Sequence[int]) -> float:
        matrix = correlation[np.ix_(order, order)]
        triples = itertools.combinations(range(len(order)), 3)
        return float(
            sum(max(0.0, matrix[i, k] - matrix[i, j]) + max(0.0, matrix[i, k] - matrix[j, k]) for i, j, k in triples)
        )

    named = list(range(len(names)))
    exchanged = {}
    for i, j in itertools.combinations(named, 2):
        if (names[i], names[j]) in _UNORDERED:
            continue
        order = named.copy()
        order[i], order[j] = j, i
        exchanged[i, j] = against(order)
    now = against(named)
    i, j = min(exchanged, key=lambda pair: exchanged[pair])
    if now - exchanged[i, j] < _SWAP_GAIN:
        return None
    neighbours = ", ".join(f"{names[a]}–{names[a + 1]} {correlation[a, a + 1]:.2f}" for a in range(len(names) - 1))
    return (
        names[i],
        names[j],
        (
            "bands far apart in the spectrum resemble each other more than neighbours do; with these two names "
            f"exchanged, {1 - exchanged[i, j] / now:.0%} of that is gone. Rank correlations as named: {neighbours}"
        ),
    )


def _swap_by_level(names: Sequence[str], values: NDArray[np.float32]) -> tuple[str, str, str] | None:
    short = [index for index, name in enumerate(names) if name.startswith("swir")]
    bright = [index for index in range(len(names)) if index not in short]
    if not short or not bright or np.percentile(values, 1) < 0:
        return None
    highest = values.max(axis=-1)
    level = np.median(values[highest >= np.percentile(highest, 95)], axis=0)
    low, high = min(bright, key=lambda index: level[index]), max(short, key=lambda index: level[index])
    if level[high] < _SNOW_RATIO * level[low] or level[high] < 0.7 * level.max():
        return None
    levels = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, level, strict=True))
    return (
        names[low],
        names[high],
        (
            "snow and ice are bright in visible light and dark in the shortwave infrared; the brightest pixels "
            f"have, in the median, {levels}"
        ),
    )


def _swap_by_shadow(names: Sequence[str], values: NDArray[np.float32]) -> tuple[str, str, str] | None:
    dark, middle = np.percentile(values, (1, 50), axis=0)
    if "blue" not in names or (dark <= 0).any():
        return None
    shadow = dict(zip(names, dark / middle, strict=True))
    other = max({"red", "nir"} & set(names), key=lambda name: shadow[name], default=None)
    if other is None or shadow["blue"] >= _SHADOW_RATIO * shadow[other]:
        return None
    return (
        "blue",
        other,
        (
            "shadows are lit by the blue sky and seen through haze; the darkest hundredth of the pixels has "
            f"{shadow['blue']:.2f} of the median in blue, {shadow[other]:.2f} in {other}"
        ),
    )


_SATURATED = 0.01
_FILLED = 0.005


def values_of_bands(survey: Survey) -> Iterator[Finding]:
    """Bands that are empty, constant or saturated, infinite values, and values that look like nodata."""
    saturated: dict[str, dict[float, dict[str, list[float]]]] = {}  # modality, largest value, band: by split
    for split in survey.splits:
        for modality, name, facts, sampled in _bands(split):
            band = f"{split.split}: {name} of {modality}"
            if not facts.count:
                yield Finding("error", f"{band} has no value at all", "NaN at every valid pixel",
                              "look at its nodata value, or leave the band out")  # fmt: skip
            elif facts.low == facts.high:
                yield Finding("error", f"{band} is constant", f"{facts.low:g} everywhere",
                              "the band says nothing: look at its file, or leave it out")  # fmt: skip
            elif share := _saturation(facts, sampled):
                saturated.setdefault(modality, {}).setdefault(facts.high, {}).setdefault(name, []).append(share)
        for modality in split.bands:
            constant = [
                tile for tile in split.tiles
                if len(split.bands[modality]) and tile.valid > 500
                and any(facts.count and facts.low == facts.high for facts in tile.bands.get(modality, ()))
                and not all(facts.low == facts.high for facts in split.band_facts[modality])
            ]  # fmt: skip
            if constant:
                yield _of_tiles(
                    "note", f"{split.split}: {_count(constant)} with a band of {modality} that is constant", split,
                    constant, "open sea has a constant elevation; elsewhere, look whether the file is cut off",
                )  # fmt: skip
            infinite = sum(tile.infinite.get(modality, 0) for tile in split.tiles)
            if infinite:
                yield _of_tiles(
                    "error", f"{split.split}: {modality} is infinite at {infinite} valid pixels", split,
                    [tile for tile in split.tiles if tile.infinite.get(modality)],
                    "a division by 0, or the logarithm of one: make it nodata before preparing tiles",
                )  # fmt: skip
            has_elevation = any(name.startswith("elevation") for name in split.bands[modality])
            highest = max((facts.high for facts in split.band_facts[modality]), default=np.inf)
            filled = [
                tile
                for tile in split.tiles
                if (found := tile.filled.get(modality, (0.0, 0)))[1] > _FILLED * tile.valid
                and found[0] != highest
                and not (found[0] == 0 and has_elevation)  # at sea, elevation and slope are 0
            ]
            count = sum(tile.filled[modality][1] for tile in filled)
            if count > _FILLED * split.valid:
                value = max(filled, key=lambda tile: tile.filled[modality][1]).filled[modality][0]
                yield _of_tiles(
                    "warning",
                    f"{split.split}: all bands of {modality} are {value:g} at {count / split.valid:.1%} of the valid "
                    "pixels",
                    split,
                    filled,
                    f"nodata that was not named? Prepare with nodata {value:g}",
                )
    for modality, by_value in saturated.items():
        share = max(max(shares) for by_band in by_value.values() for shares in by_band.values())
        listed = "; ".join(
            f"at {high:g} are " + ", ".join(f"{_range(shares)} of {name}" for name, shares in by_band.items())
            for high, by_band in by_value.items()
        )
        yield Finding(
            "warning" if share > 0.1 else "note",
            f"{modality} is saturated: up to {_share(share)} of a band's valid pixels have its largest value",
            f"{listed}, by split" if len(survey.splits) > 1 else listed,
            "snow and bright ice look alike there: take an image of a lower gain or of more bits, or rely on bands "
            "that are not saturated",
        )


def _saturation(facts: BandFacts, sampled: NDArray[np.float32]) -> float:
    """Return the share of pixels at the largest value, 0 unless they pile up there.

    They do if there are more of them than in the next 2 % of the range, of a band that has many values.
    """
    share = facts.at_high / facts.count
    if share < _SATURATED or len(np.unique(sampled)) < 32:
        return 0.0
    low = np.percentile(sampled, 1)
    below = ((sampled < facts.high) & (sampled > facts.high - 0.02 * (facts.high - low))).mean()
    return share if share > below else 0.0


def units(survey: Survey) -> Iterator[Finding]:
    """Tiles whose values are 10 times those of others, or a tenth: DNs beside reflectances, metres beside feet."""
    for modality in {modality: None for split in survey.splits for modality in split.bands}:
        medians: dict[tuple[str, str], float] = {}
        for split in survey.splits:
            if modality not in split.sample or "dem" in modality:
                continue
            for number, tile in enumerate(split.tiles):
                values = np.abs(split.sample[modality][split.sample_tiles == number])
                if np.isfinite(values).any():
                    medians[split.split, tile.info.name] = float(np.nanmedian(values))
        typical = float(np.median(list(medians.values()))) if medians else 0.0
        odd = [key for key, value in medians.items() if typical and not typical / 12 <= value <= typical * 12]
        if odd and len(odd) < 0.5 * len(medians) + 1 and len(medians) > 1:
            yield Finding(
                "warning",
                f"{len(odd)} of {len(medians)} tiles have values of {modality} of another size than the rest",
                f"median {typical:.3g} over all; "
                + ", ".join(f"{split}/{name} {medians[split, name]:.3g}" for split, name in odd[:_LISTED]),
                "another unit (digital numbers beside reflectance, decibels beside power)? Prepare all in one",
                tuple(odd),
            )


def elevations(survey: Survey) -> Iterator[Finding]:
    """Elevations that do not exist on earth, slopes that are none, and the two exchanged."""
    for split in survey.splits:
        if split.statistics is None or split.statistics.applied:
            continue
        found = {name.split("_")[0]: (facts, sampled) for _, name, facts, sampled in _bands(split) if facts.count}
        slope, elevation = found.get("slope"), found.get("elevation")
        if slope and elevation:
            high = float(np.percentile(slope[1], 99))
            if (slope[0].low < -0.5 or high > 91) and elevation[0].low > -0.5 and elevation[0].high < 91:
                yield Finding(
                    "error", f"{split.split}: elevation and slope seem to be exchanged",
                    f"elevation is {elevation[0].low:.0f} to {elevation[0].high:.0f}, slope {slope[0].low:.0f} to "
                    f"{slope[0].high:.0f}", "name the bands of the DEM in their order",
                )  # fmt: skip
                continue
        if slope:
            facts, sampled = slope
            if facts.low < -0.5 or facts.high > 90.5:
                yield Finding(
                    "error", f"{split.split}: slope is not in degrees from 0 to 90",
                    f"{facts.low:.4g} to {facts.high:.4g}", "percent, or nodata that was not named: make it degrees",
                )  # fmt: skip
            elif float(np.percentile(sampled, 99.9)) < 1.7:
                yield Finding(
                    "warning", f"{split.split}: slope seems to be in radians, or as rise over run",
                    f"99.9 % is below {np.percentile(sampled, 99.9):.2f}", "make it degrees",
                )  # fmt: skip
        if elevation and (elevation[0].low < -500 or elevation[0].high > 9000):
            yield Finding(
                "error", f"{split.split}: elevation beyond what there is on earth",
                f"{elevation[0].low:.0f} to {elevation[0].high:.0f} m, expected -500 to 9000",
                "nodata that was not named, or feet instead of metres",
            )  # fmt: skip


def statistics(survey: Survey) -> Iterator[Finding]:
    """Statistics that do not bring the training values near 0 and 1."""
    train = next((split for split in survey.splits if split.split == "train"), None) or (
        survey.splits[0] if survey.splits else None
    )
    if train is None:
        return
    stored = train.statistics
    for modality, name, facts, sampled in _bands(train):
        index = train.bands[modality].index(name)
        if not len(sampled) or facts.low == facts.high:
            continue
        if stored is None or modality not in stored.shift:
            scaled, method = sampled, "none: taken as scaled already"
        else:
            scale = 1.0 if stored.applied else stored.scale[modality][index]
            shift = 0.0 if stored.applied else stored.shift[modality][index]
            scaled, method = (sampled - shift) / scale, f"{stored.method}, {stored.fitted_on}"
        low, high = np.percentile(scaled, [1, 99])
        spread = float(scaled.std())
        if stored is not None and stored.method == "standardise":
            mean = float(scaled.mean())
            wrong = abs(mean) > 1.0 or not 0.4 < spread < 2.5
            told = f"scaled, its mean is {mean:.3g} and its deviation {spread:.3g}, expected about 0 and 1"
        else:
            wrong = low < -1 or high > 3 or high - low < 0.01
            told = f"scaled, 98 % of its values are {low:.3g} to {high:.3g}, expected within 0 and 1"
        if wrong:
            yield Finding(
                "error", f"the statistics do not fit {name} of {modality}", f"{told} ({method})",
                "other units than the statistics were fitted on? Prepare the tiles again, with statistics of their own",
            )  # fmt: skip


def processing_levels(survey: Survey) -> Iterator[Finding]:
    """Surface reflectance or temperature scaled as the published top-of-atmosphere data."""
    described = survey.provenance.get("modalities")
    fitted_on = {split.statistics.fitted_on for split in survey.splits if split.statistics}
    if not isinstance(described, Mapping) or published().fitted_on not in fitted_on:
        return
    for modality, entry in described.items():
        level = str(entry.get("level", "")) if isinstance(entry, Mapping) else ""
        if any(part.strip().upper().startswith(("L2", "SURFACE")) for part in level.split(",")):
            yield Finding(
                "warning", f"{modality} is of level {level}, with the published statistics",
                "the published weights were trained on top-of-atmosphere reflectance; surface reflectance is darker "
                "in blue and brighter on slopes in shade",
                "take level 1 for the published weights; for a training of your own, fit statistics",
            )  # fmt: skip


# -- what is missing -----------------------------------------------------------------------------------------


def gaps(survey: Survey) -> Iterator[Finding]:
    """Bands without values where others of their modality have some, and modalities absent from tiles."""
    for split in survey.splits:
        for modality in split.bands:
            there = [tile for tile in split.tiles if modality in tile.bands]
            valid = sum(tile.valid for tile in there)
            share = sum(tile.gaps[modality] for tile in there) / max(valid, 1)
            if share > 0.05:
                yield _of_tiles(
                    "warning", f"{split.split}: some bands of {modality} lack values at {share:.0%} of the pixels",
                    split, [tile for tile in there if tile.gaps[modality] > 0.05 * tile.valid],
                    "they become 0 after scaling: look at the band's nodata value and extent",
                )  # fmt: skip
            absent = [tile for tile in split.tiles if modality in tile.absent]
            if absent:
                everywhere = len(absent) == len(split.tiles)
                yield _of_tiles(
                    "warning" if everywhere else "note",
                    f"{split.split}: {modality} is absent from {len(absent)} of {len(split.tiles)} tiles", split,
                    absent, "networks leave an absent modality out; a recipe can drop it at random in training",
                )  # fmt: skip


def unseen_glacier(survey: Survey) -> Iterator[Finding]:
    """Glacier of the mask where the images have no value."""
    for split in survey.splits:
        glacier = sum(tile.glacier for tile in split.tiles)
        for modality in ("", *split.bands):
            unseen = sum(tile.unseen_glacier.get(modality, 0) for tile in split.tiles)
            if glacier and unseen > 0.05 * glacier:
                what = f"{modality} has no value" if modality else "the scene was not seen"
                yield _of_tiles(
                    "warning" if unseen > 0.2 * glacier else "note",
                    f"{split.split}: {what} at {unseen / glacier:.0%} of the glacier inside the outlines", split,
                    [tile for tile in split.tiles if tile.unseen_glacier.get(modality, 0) > 0.05 * tile.glacier],
                    "cloud, shadow or saturation masked as nodata? What is masked is not learned: look at where it is",
                )  # fmt: skip


def classes(survey: Survey) -> Iterator[Finding]:
    """Classes of which a split has no pixel."""
    for split in survey.splits:
        if not split.counts.sum():
            continue
        missing = [info for info, count in zip(split.classes, split.counts, strict=True) if not count]
        if not split.counts[split.glacier_ids].sum():
            yield Finding("error", f"{split.split}: no glacier in the masks", "no valid pixel of a glacier class",
                          "look at --classes, or at where the outlines lie")  # fmt: skip
        elif missing:
            names = ", ".join(info.name for info in missing)
            yield Finding(
                "warning", f"{split.split}: no pixel of {names}", "the class is in the class list only",
                "it can't be learned" if split.split == "train" else "its score is not known: divide again, with "
                "another seed, or add tiles",
            )  # fmt: skip


def labels(survey: Survey) -> Iterator[Finding]:
    """Valid pixels without a class, and splits of which little is valid."""
    for split in survey.splits:
        ignored = sum(tile.ignored for tile in split.tiles)
        if split.valid and ignored > 0.5 * split.valid:
            nothing = ignored == split.valid
            yield Finding(
                "error" if nothing else "warning",
                f"{split.split}: {'no' if nothing else f'only {1 - ignored / split.valid:.0%} of the'} valid pixels "
                "have a class", f"{ignored} of {split.valid} are to be ignored",
                "look at the values of the masks, at ignore buffers and at cloud masks",
            )  # fmt: skip
        if split.pixels and split.valid < 0.3 * split.pixels:
            yield Finding(
                "warning", f"{split.split}: only {split.valid / split.pixels:.0%} of the pixels are valid",
                f"{split.valid} of {split.pixels}", "look at the nodata values, or leave tiles out that are empty",
            )  # fmt: skip


def weak_masks(survey: Survey) -> Iterator[Finding]:
    """Masks that no person drew."""
    mask = survey.provenance.get("mask")
    if isinstance(mask, Mapping) and mask.get("kind") == "weak":
        yield Finding(
            "warning", f"weak masks: {mask.get('rule')}", "no one drew these masks: they are an index and a threshold",
            "scores say how well the index is copied, not how well glaciers are mapped; debris-covered ice is missing",
        )  # fmt: skip


def regions(survey: Survey) -> Iterator[Finding]:
    """Tiles without a region, and regions that are only in some splits or not known to published models."""
    nowhere = [(split.split, tile.info.name) for split, tile in survey.tiles() if not tile.info.region]
    if nowhere:
        yield Finding(
            "warning", f"{len(nowhere)} tiles have no region", _listing(nowhere),
            "scores are by region: say it with --region", tuple(nowhere),
        )  # fmt: skip
    by_split = {split.split: {tile.info.region for tile in split.tiles} - {""} for split in survey.splits}
    unknown = sorted(set().union(*by_split.values()) - set(PUBLISHED_REGIONS)) if by_split else []
    if unknown:
        yield Finding(
            "note", f"region {', '.join(unknown)} is not one of the published ones",
            f"these are {', '.join(PUBLISHED_REGIONS)}", "models with a location input take it for an unknown region",
        )  # fmt: skip
    if "train" in by_split:
        for split, names in by_split.items():
            if new := sorted(names - by_split["train"]):
                yield Finding(
                    "note",
                    f"{split} has regions that training has not: {', '.join(new)}",
                    "its scores tell how a model does where it was not trained",
                    "divide again if you did not mean it",
                )


def splits(survey: Survey) -> Iterator[Finding]:
    """Splits that are missing."""
    names = [split.split for split in survey.splits]
    if "train" in names and "val" not in names:
        yield Finding("warning", "there is no val split", f"there are {', '.join(names)}",
                      "training selects its best epoch on it: divide again")  # fmt: skip


# -- helpers -------------------------------------------------------------------------------------------------


def _bands(split: SplitFacts) -> Iterator[tuple[str, str, BandFacts, NDArray[np.float32]]]:
    """Yield modality, name, facts and finite sampled values of each band."""
    for modality, names in split.bands.items():
        for index, name in enumerate(names):
            values = split.sample[modality][:, index]
            yield modality, name, split.band_facts[modality][index], values[np.isfinite(values)]


def _of_tiles(severity: Severity, what: str, split: SplitFacts, tiles: Sequence[TileFacts], remedy: str) -> Finding:
    named = tuple((split.split, tile.info.name) for tile in tiles)
    return Finding(severity, what, _listing(named), remedy, named)


def _listing(tiles: Sequence[tuple[str, str]]) -> str:
    more = f" and {len(tiles) - _LISTED} more" if len(tiles) > _LISTED else ""
    return ", ".join(name for _, name in tiles[:_LISTED]) + more


def _count(tiles: Sequence[TileFacts]) -> str:
    return _number(len(tiles), "tile")


def _range(shares: Sequence[float]) -> str:
    low, high = _share(min(shares)), _share(max(shares))
    return low if low == high else f"{low} to {high}"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
