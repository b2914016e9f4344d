# IMDb from all-MiniLM-L6-v2; how to get out/minilm is said in config/minilm_sst2.py.
# Not yet measured.
data = "imdb"
init_from = "out/minilm"
out_dir = "out/minilm_imdb"

max_length = 512
long_text = "head_tail"
batch_size = 16
epochs = 3
lr = 1e-4
layer_decay = 0.9
eval_interval = 500
