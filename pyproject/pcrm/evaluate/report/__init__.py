"""What a reward model's scores are like: numbers, figures and a page of both.

reading     score files into arrays
statistics  numbers of arrays, which Go computes
figures     pictures of both, as SVG
page        the self-contained report.html
"""
