# WikiText-2 for longer: the GPT of config/wikitext.py with dropout, weight decay and twice the context.
#     OMP_NUM_THREADS=1 python train.py config/wikitext_long.py
#     python train.py --eval_only --init_from=out/wikitext_long --cache_tokens=8000
# Seen on the test set after 71 minutes of a busy core: 1.306 bits per byte and a perplexity of 103 per word, with a
# cache of the last 8,000 tokens of the text 1.208 and 72.5.
data = "wikitext"
out_dir = "out/wikitext_long"
max_steps = 5000

n_layer = 4
n_head = 4
n_embd = 256
tie_head = True
block_size = 512
batch_size = 8
lr = 0.003
dropout = 0.1
weight_decay = 0.1
warmdown = 0.8
eval_interval = 500
