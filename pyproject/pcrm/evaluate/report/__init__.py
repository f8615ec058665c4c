"""`pcrm report`: what a reward model's scores are like, as numbers, figures and a page of both.

summary  the numbers of all models, and the files that have them
figures  their pictures
"""
