"""Applying a model: overlapping windows blended into maps, over tiles as large as they come.

`sliding` blends, `predictor` puts a model together with all that it takes, `tiles` predicts a tile file,
`predictions` is the format of what comes out. `outlines` makes polygons of a label raster, with `cleaning`, `divides`,
`topology`, `areas`, `zonal` and `geopackage`. The modules are imported one by one; this one imports nothing.
"""
