# SST-2, phrases and sentences of film reviews, from the classifier of longer film reviews that config/imdb.py trains.
# Expect 83.1 % of the 872 test sentences (deviation 0.7 over 3 seeds, 6 minutes each on one core); naive Bayes on words
# and pairs of words has 81.8 %. Seen from weights of config/imdb.py --epochs=2 --embed_lr=0.03.
data = "sst2"
init_from = "out/imdb"
out_dir = "out/sst2"

max_length = 64
batch_size = 128
epochs = 1
eval_interval = 122
optimizer = "muon"
muon_lr = 0.003
lr = 5e-4
embed_lr = 0.01
head_lr = 0.003
dropout = 0.0
token_mask = 0.1
average = 0.99
