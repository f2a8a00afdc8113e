"""Mapping a scene: its rasters of classes and confidence, outlines with areas, and a summary, in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from console import remove_leftovers, replacing, warn
from data.predictions import per_class
from evaluation.calibration import Calibrator
from inference.confidence import Combination, Way, weights_digests
from inference.engines import Engine, choose_engines
from inference.outlines import Summary, check_sizes, write_outlines
from inference.predictor import Predictor
from inference.scenes import (
    SceneOffer,
    ScenePlan,
    ScenePrediction,
    SceneSource,
    plain,
    plan_scene,
    predict_planned,
)
from inference.sliding import Floats, Kernel
from inference.tiles import joined_name
from inference.topology import Smoothing

PLAIN = Way()


@dataclass(frozen=True)
class Calibration:
    """What makes probabilities calibrated ones, and the correlation length of the errors that are left (m)."""

    map: Calibrator
    correlation_length_m: float | None


@dataclass(frozen=True)
class Outlining:
    """How labels become outlines; see `inference.outlines.write_outlines`."""

    smallest_km2: float = 0.01
    median_px: int = 0
    smoothing: Smoothing = "none"
    divides: Path | None = None
    correlation_length_m: float | None = None


@dataclass(frozen=True)
class Mapped:
    """What became of a scene: its rasters, its outlines, and what they add up to."""

    name: str
    folder: Path
    pixels: int
    rasters: ScenePrediction
    outlines: Summary

    def text(self) -> str:
        """Return the summary that a user reads."""
        seconds = max(self.rasters.seconds, 1e-9)
        again = f", {self.rasters.resumed} strips of an earlier start" if self.rasters.resumed else ""
        lines = [
            f"{self.name}: {self.pixels:,} pixels, {self.rasters.windows} windows in {seconds:.0f} s "
            f"({self.pixels / seconds / 1e3:,.0f} thousand pixels a second{again})"
        ]
        for layer in self.outlines.layers:
            text = f"  {layer.title}: {layer.area_km2:.2f} km² in {layer.polygons} outlines; ± half a pixel "
            text += f"{layer.half_pixel.low_km2:.2f}–{layer.half_pixel.high_km2:.2f} km²"
            if layer.probable is not None:
                text += (
                    f"; by probability {layer.probable.area_km2:.2f} km², 90 % within "
                    f"{layer.probable.low_km2:.2f}–{layer.probable.high_km2:.2f} km²"
                )
            lines.append(text)
        lines.append(f"wrote {self.folder}/: labels.tif, confidence.tif, outlines.gpkg, summary.json")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON knows it."""
        return {
            "scene": self.name,
            "pixels": self.pixels,
            "windows": self.rasters.windows,
            "seconds": round(self.rasters.seconds, 1),
            "layers": self.outlines.to_json(),
        }


@dataclass(frozen=True)
class Finish:
    """Turns probabilities `(h, w, K)` into those of each class, calibrated if there is a `calibrator`, and labels."""

    calibrator: Calibrator | None = None

    def __call__(self, probs: Floats) -> tuple[Floats, NDArray[np.uint8]]:
        """Return probabilities of every class `(h, w, K)` and labels `(h, w)`."""
        every, labels = plain(probs)
        return (per_class(np.asarray(self.calibrator(probs), np.float32)) if self.calibrator else every), labels


@dataclass(frozen=True)
class MapPlan:
    """A scene that is to be mapped: its strips, and what is to become of them; see `plan_map`."""

    name: str
    offered: SceneOffer
    way: Way
    strips: ScenePlan
    finish: Finish
    outlining: Outlining
    correlation_length_m: float | None
    keep_probs: bool
    facts: Mapping[str, Any]
    members: Sequence[Predictor]


def plan_map(
    members: Sequence[Predictor],
    offered: SceneOffer,
    folder: Path,
    *,
    way: Way = PLAIN,
    calibration: Calibration | None = None,
    outlining: Outlining | None = None,
    overlap: float = 0.5,
    batch: int = 4,
    keep_probs: bool = False,
    engine: Engine | None = None,
    shape: Kernel = "gaussian",
) -> MapPlan:
    """Check everything that can be checked before hours of prediction, and divide a scene into strips.

    Args:
        members: The run or runs.
        offered: The scene, of `inference.scenes.offer`.
        folder: Where everything goes.
        way: How a patch is predicted.
        calibration: What the confidence is calibrated with; None: not.
        outlining: How outlines are made.
        overlap: Share of a window that its neighbour has, too, 0 … 1 exclusive.
        batch: Windows predicted at once.
        keep_probs: Whether the probabilities of all classes are kept.
        engine: What predicts; Keras by default.
        shape: Of the kernel that windows are blended by.

    Raises:
        UserError: If runs do not go together or do not suit the scene, or an option is impossible.
    """
    outlining = outlining or Outlining()
    check_sizes(outlining.smallest_km2, outlining.smallest_km2, outlining.median_px, outlining.correlation_length_m)
    scene, classes = offered.scene, members[0].classes
    model = Combination(members, offered, way)
    source = SceneSource(scene, model.input_sets())
    members = choose_engines(members, model, [source], engine or Engine("keras"), way=way, overlap=overlap, batch=batch)
    name = joined_name(members)
    facts: dict[str, Any] = {
        "run": name,
        "weights": weights_digests(members),
        "scene": scene.name,
        "date": scene.date.isoformat() if scene.date else "",
        "tta": way.tta,
        "mc": way.mc,
        "calibration": calibration.map.model_dump(mode="json") if calibration else None,
        "precision": members[0].described.get("precision", ""),
        "engine": [member.engine_name for member in members],
    }
    strips = plan_scene(
        source,
        folder,
        classes=classes,
        num_outputs=model.num_outputs,
        patch=model.patch_size,
        overlap=overlap,
        batch=batch,
        # With more than two classes the confidence alone does not say how the rest is shared, which areas need.
        keep_probs=keep_probs or len(classes) > 2,
        described=facts,
        shape=shape,
    )
    length = outlining.correlation_length_m
    if length is None and calibration is not None:
        length = calibration.correlation_length_m
    finish = Finish(calibration.map if calibration else None)
    return MapPlan(name, offered, way, strips, finish, outlining, length, keep_probs, facts, members)


def predict_map(planned: MapPlan) -> ScenePrediction:
    """Predict the missing strips of a scene in this process and make its rasters."""
    return predict_planned(Combination(planned.members, planned.offered, planned.way), planned.strips, planned.finish)


def finish_map(planned: MapPlan, rasters: ScenePrediction, command: str = "") -> Mapped:
    """Write outlines and a summary of a scene beside its rasters, and forget its strips.

    Raises:
        UserError: If a raster can't be read, or nothing can be written.
    """
    scene, outlining, folder = planned.strips.scene, planned.outlining, planned.strips.folder
    dem = scene.sources.get("dem")
    heights = dem.rasters[0] if dem is not None and len(dem.rasters) == 1 else None
    if dem is not None and heights is None and dem.rasters:
        warn(f"scene {scene.name}: elevations are not added to the outlines: its DEM lies in several files")
    target, summary = folder / "outlines.gpkg", folder / "summary.json"
    remove_leftovers(target, summary)
    outlines = write_outlines(
        rasters.labels,
        target,
        planned.strips.classes,
        confidence=rasters.confidence,
        probs=rasters.probs,
        dem=heights,
        divides=outlining.divides,
        smallest_km2=outlining.smallest_km2,
        smallest_hole_km2=outlining.smallest_km2,
        median_px=outlining.median_px,
        smoothing=outlining.smoothing,
        correlation_length_m=planned.correlation_length_m,
        src_date=scene.date,
        described=f"{scene.name}, mapped by {planned.name}; {command}",
    )
    if rasters.probs is not None and not planned.keep_probs:
        rasters.probs.unlink()
    mapped = Mapped(scene.name, folder, scene.grid.height * scene.grid.width, rasters, outlines)
    facts = {**planned.facts, "correlation_length_m": planned.correlation_length_m, "command": command}
    with replacing(summary) as temporary:
        temporary.write_text(json.dumps({**mapped.to_json(), **facts}, indent=1))
    planned.strips.clear()
    return mapped
