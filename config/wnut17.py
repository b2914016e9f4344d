# WNUT-17: rare entities in short messages, from an encoder pretrained on WikiText-2 (config/wikitext_bert_ngram.py) and
# a linear model of spelling and surroundings beside it; O is refused below a threshold that the validation rows tell.
#     python train.py config/wikitext_bert_ngram.py
#     python finetune.py config/wnut17.py --seeds=1,2,3
# Seen over the three seeds, 100 seconds of a core each: a test entity F1 of 0.258 (deviation 0.009); on the validation
# rows, which choose epoch and threshold, 0.391. The linear model alone 0.222, the longest match 0.030.
data = "wnut17"
init_from = "out/wikitext_bert_ngram"
out_dir = "out/wnut17"

max_length = 128
batch_size = 32
epochs = 2
eval_interval = 54
optimizer = "muon"
muon_lr = 0.01
lr = 1e-3
embed_lr = 0.001
head_lr = 0.01
token_mask = 0.15
