"""What the pages of `pcrm report` and `pcrm optimize` share.

style   how figures look
figure  an SVG with the words around it, and its legend
page    the self-contained HTML page, a table of numbers and figures
"""
