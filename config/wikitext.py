# WikiText-2, word level: a GPT of 4 layers x 256 on 8,192 BPE tokens, 20 minutes on 2 cores.
# Seen on the test set after 3,573 steps on a processor with AMX: 1.320 bits per byte and a perplexity of 108 per word;
# with a cache of the text before (--eval_only --init_from=out/wikitext --cache_tokens=8000) 1.215 and 74.5. With an
# output head of its own (--tie_head=false --warmdown=0.6, 2,815 steps) 1.331 and 112.
data = "wikitext"
out_dir = "out/wikitext"
max_minutes = 20

n_layer = 4
n_head = 4
n_embd = 256
tie_head = True
block_size = 256
batch_size = 16
lr = 0.003
embed_lr = 0.03
warmdown = 0.9
eval_interval = 200
