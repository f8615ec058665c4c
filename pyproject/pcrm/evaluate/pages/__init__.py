"""Shared code of the pages of `pcrm report` and `pcrm optimize`.

style   the look of figures
figure  an SVG with title, caption and legend
page    the self-contained HTML page with a table of numbers and figures
"""
