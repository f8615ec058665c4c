"""`pcrm report`: statistics of a reward model's scores, as numbers, figures and a page with both.

summary  the numbers of all models, and the output files
figures  the figures
"""
