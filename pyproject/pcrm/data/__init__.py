"""Files of rows: read in batches, written with new columns, resumable after a kill. Nothing here needs torch.

preferences   the responses of a row
sources       open a file, a folder or a data set on the hub as batches
batches       the part that is in memory at once: lines or an Arrow table
json_values, arrow_rows, csv_tables   rows of each format as Python values or tables
rankings      the comparisons of rows with several responses
write_pairs   the comparisons of a file of rankings as rows of pairs
row_pipeline  how a command adds columns: batches, bad rows, progress, resuming
writers       rows with more columns, as JSON Lines or a table
resumable     the output
check_preferences  problems of preference data
prior_record  the record of how a column `prior` was computed
tokenizers    the hash of a tokenizer's vocabulary
"""
