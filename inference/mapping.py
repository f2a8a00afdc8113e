"""Mapping a scene: its rasters of classes and confidence, outlines with areas, and a summary, in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from console import replacing, warn
from data.predictions import per_class
from evaluation.calibration import Calibrator
from inference.confidence import Combination, Way, weights_digests
from inference.outlines import Summary, check_sizes, write_outlines
from inference.predictor import Predictor
from inference.scenes import SceneOffer, ScenePrediction, SceneSource, build_overviews, plain, predict_scene
from inference.sliding import Floats
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


def map_scene(
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
    command: str = "",
) -> Mapped:
    """Predict a scene with one run or an ensemble and write rasters, outlines and a summary into `folder`.

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
        command: The command, to be noted.

    Raises:
        UserError: If runs do not go together or do not suit the scene, a raster can't be read, or nothing can be
            written.
    """
    outlining = outlining or Outlining()
    check_sizes(
        outlining.smallest_km2, outlining.smallest_km2, outlining.median_px, outlining.correlation_length_m
    )  # before hours of prediction, not after
    scene, classes = offered.scene, members[0].classes
    model = Combination(members, offered, way)
    source = SceneSource(scene, model.input_sets(scene.region))
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
    }

    def finish(probs: Floats) -> tuple[Floats, NDArray[np.uint8]]:
        every, labels = plain(probs)
        return (per_class(np.asarray(calibration.map(probs), np.float32)) if calibration else every), labels

    # With more than two classes the confidence alone does not say how the rest is shared, which areas need.
    probs_needed = keep_probs or len(classes) > 2
    rasters = predict_scene(
        model,
        source,
        folder,
        classes=classes,
        num_outputs=model.num_outputs,
        patch=model.patch_size,
        overlap=overlap,
        batch=batch,
        keep_probs=probs_needed,
        described=facts,
        finish=finish,
    )
    length = outlining.correlation_length_m
    if length is None and calibration is not None:
        length = calibration.correlation_length_m
    dem = scene.sources.get("dem")
    heights = dem.rasters[0] if dem is not None and len(dem.rasters) == 1 else None
    if dem is not None and heights is None and dem.rasters:
        warn(f"scene {scene.name}: elevations are not added to the outlines: its DEM lies in several files")
    outlines = write_outlines(
        rasters.labels,
        folder / "outlines.gpkg",
        classes,
        confidence=rasters.confidence,
        probs=rasters.probs,
        dem=heights,
        divides=outlining.divides,
        smallest_km2=outlining.smallest_km2,
        smallest_hole_km2=outlining.smallest_km2,
        median_px=outlining.median_px,
        smoothing=outlining.smoothing,
        correlation_length_m=length,
        src_date=scene.date,
        described=f"{scene.name}, mapped by {name}; {command}",
    )
    for path in (rasters.labels, rasters.confidence):
        build_overviews(path)
    if rasters.probs is not None and not keep_probs:
        rasters.probs.unlink()
    mapped = Mapped(scene.name, folder, scene.grid.height * scene.grid.width, rasters, outlines)
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(mapped.to_json() | facts | {"command": command}, indent=1))
    return mapped
