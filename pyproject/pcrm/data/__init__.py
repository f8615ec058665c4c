"""Files of rows: read by the batch, written with new columns, gone on with after a kill. Nothing here needs torch.

preferences   what the responses of a row are
sources       opens a file, a folder or a data set of the hub as batches
batches       what is in memory at once: lines or an Arrow table
json_values, arrow_rows   the rows of either as Python values
rankings      the comparisons of rows with several responses
write_pairs   the comparisons of a file of rankings as rows of pairs
row_pipeline  how a command adds columns: batches, bad rows, progress, resuming
writers       rows with more columns, as JSON Lines or a table
resumable     the output
check_preferences  what is wrong with preferences
prior_record  how a column `prior` was computed, recorded with the data
tokenizers    what tells a tokenizer from others
"""
