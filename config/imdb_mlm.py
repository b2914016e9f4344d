# An encoder for movie reviews: masked words on the 25,000 IMDb training reviews, the start for fine-tuning.
data = "imdb"
out_dir = "out/imdb_mlm"
objective = "mlm"
max_minutes = 40

block_size = 256
batch_size = 16
eval_interval = 250
