"""Tile files, scenes, normalisation, windows and sampling: everything between a raster and a network's input.

`tiles` has the file format, `grids` reads rasters on a grid on earth, `terrain` elevation models with their slope,
`bands` and `synthetic` make tile files, `windows` cuts tiles into patches, `normalisation` scales them. The modules are
imported one by one; this one imports nothing.
"""
