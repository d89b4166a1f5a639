"""From a picture to the pictures like it: an index of one's own pictures, searched with a trained encoder.

encoder = load_encoder('weights/fast')
index = Index.build('index', encoder, 'pictures')
for match in index.query('cat.jpg', k=5):
    print(f'{match.similarity:.3f} {match.path}')
"""

from simclr_cifar.search.encoder import Encoder, load_encoder
from simclr_cifar.search.index import Index, Match

__all__ = ['Encoder', 'Index', 'Match', 'load_encoder']
