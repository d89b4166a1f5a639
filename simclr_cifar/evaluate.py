"""From parameters and datasets to figures, confusion matrices and pictures, and their files."""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterable

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from simclr_cifar import metrics, models, neighbours, parallel, pictures, representation, step, views
from simclr_cifar.data import Dataset
from simclr_cifar.files import RunFolder, write, write_arrays, write_json
from simclr_cifar.step import TrainState

NEAREST = 10
# A picture matches nothing where its NEAREST-th training image is less similar than this share of validation images'.
_FALSE_ALARMS = 0.05


@dataclasses.dataclass
class Evaluation:
    """What one checkpoint is worth.

    Attributes:
      figures: '<split>/<metric>' to its value.
      confusions: (split, kind) to int64 [C, C]; a row is a query's class, a column the class of its NEAREST images of
        the same split (kind 'neighbours') or of the vote of its 200 nearest training images (kind 'knn').
      queries: split to the figures of each of its N images, name to float [N], and their 'label', int32 [N].
      pictures: arrays of the test split's images worth a look; see `pictures.worth_a_look`.
    """

    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    confusions: dict[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)
    queries: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def make_evaluate(config: ml_collections.ConfigDict, mesh: Mesh, splits: dict[str, Dataset]) -> Callable:
    """Returns (state, names of splits) -> Evaluation, on every image of the splits named.

    Embeddings are of the averaged weights where there are any, and of an image and its mirror image where the config
    says flip_averaging; a few figures without each are given beside, as '<split>/raw_weights/<metric>' and
    '<split>/without_flip/<metric>', and as 'test/features/<metric>' those of the features before the head, which the
    literature compares encoders by. 'train' stands for the sample of training images that is as large as the validation
    split, so that the two compare; 'test' brings the figures of the classes never seen, where there are any.
    Images that are all of one class are scored by their views instead; see `views`.

    Args:
      config: the run's.
      mesh: where the encoder runs.
      splits: as `data.load_splits` returns them.
    """
    encode = step.compile_encode(config, mesh)
    beside = functools.partial(_beside, splits)
    if not splits['train'].has_classes:
        splits, beside = views.with_views(config, splits), views.figures

    def evaluate(state: TrainState, names: Iterable[str]) -> Evaluation:
        embed = _embedder(config, mesh, splits, encode, state.average or state.variables)
        others = {}
        if state.average:
            others['raw_weights'] = _embedder(config, mesh, splits, encode, state.variables)
        if config.flip_averaging:
            others['without_flip'] = functools.partial(embed, flip_averaging=False)
        others_of_test = dict(others)
        if config.representation != 'features':
            others_of_test['features'] = functools.partial(embed, representation='features')

        evaluation = Evaluation()
        for name in names:
            if not splits['train'].has_classes:
                _evaluate_views(evaluation, name, splits, embed)
            elif name == 'train':
                sample = splits['train_sample']
                figures, queries, _, _ = _retrieval(embed('train_sample'), sample.labels, config.temperature)
                _record(evaluation, name, figures, queries, sample.labels)
            else:
                _evaluate_split(evaluation, name, splits, embed, config.temperature)
            if name != 'train':
                for kind, embed_otherwise in (others_of_test if name == 'test' else others).items():
                    figures = beside(name, embed_otherwise)
                    evaluation.figures |= {f'{name}/{kind}/{metric}': value for metric, value in figures.items()}
        if 'test' in names and 'unseen' in splits:
            evaluation.figures |= _unseen(splits, embed)
        return evaluation

    return evaluate


def _embedder(config, mesh, splits, encode, variables) -> Callable:
    """Returns (name of a split, representation, flip_averaging) -> its embeddings, float32 [N, D], computed once."""
    variables = parallel.replicate(variables, mesh)

    @functools.cache
    def view(split, mirrored):
        def encode_batch(images):
            return encode(variables, images[:, :, ::-1] if mirrored else images)

        return parallel.in_padded_batches(encode_batch, splits[split].images, config.eval_batch_size, mesh)

    @functools.cache
    def embed(split, representation=config.representation, flip_averaging=config.flip_averaging):
        own = view(split, mirrored=False)[representation]
        if not flip_averaging:
            return own
        return np.asarray(models.unit(own + view(split, mirrored=True)[representation]))

    return embed


def make_monitor(config: ml_collections.ConfigDict, mesh: Mesh, splits: dict[str, Dataset]) -> Callable:
    """Returns state -> figures of the validation images, cheap ones to watch training by.

    They are 'monitor/knn_accuracy_k200' and 'monitor/linear_probe_accuracy', with the sample of training images, as
    large as the validation split, in place of all of them, and of the weights as they are, of one view; or, of images
    that are all of one class, 'monitor/view_accuracy'.
    """
    encode = step.compile_encode(config, mesh)
    if not splits['train'].has_classes:
        splits = views.with_views(config, splits)

    def monitor(state: TrainState) -> dict[str, float]:
        embed = functools.partial(_embedder(config, mesh, splits, encode, state.variables), flip_averaging=False)
        if not splits['train'].has_classes:
            return {f'monitor/{name}': value for name, value in views.figures('validation', embed).items()}
        sample = splits['train_sample']
        votes, probed = _classified(splits['validation'], sample, embed('validation'), embed('train_sample'))
        labels = splits['validation'].labels
        return {
            f'monitor/knn_accuracy_k{metrics.KNN_K}': float(np.mean(votes == labels)),
            'monitor/linear_probe_accuracy': float(np.mean(probed == labels)),
        }

    return monitor


def _classified(queries: Dataset, train: Dataset, embeddings: np.ndarray, train_embeddings: np.ndarray):
    """Returns the classes that the nearest training images vote for and that a linear probe tells, int [N] each."""
    num_classes = len(queries.class_names)
    _, indices = neighbours.top_k(embeddings, train_embeddings, min(metrics.KNN_K, len(train.labels)))
    votes = metrics.knn_vote(train.labels[indices], num_classes)
    return votes, representation.linear_probe(train_embeddings, train.labels, embeddings, num_classes)


def _beside(splits: dict[str, Dataset], name: str, embed: Callable) -> dict[str, float]:
    """Returns the figures that tell one way to embed from another."""
    queries, embeddings = splits[name], embed(name)
    votes, probed = _classified(queries, splits['train'], embeddings, embed('train'))
    nearest = neighbours.top_k(embeddings, None, min(NEAREST, len(embeddings) - 1))[1]
    return {
        f'knn_accuracy_k{metrics.KNN_K}': float(np.mean(votes == queries.labels)),
        'linear_probe_accuracy': float(np.mean(probed == queries.labels)),
        'pair_accuracy': metrics.class_mean(metrics.pair_accuracy(embeddings, queries.labels), queries.labels),
        'precision_at_10': float(np.mean(queries.labels[nearest] == queries.labels[:, None])),
    }


def _record(evaluation: Evaluation, name: str, figures: dict, queries: dict, labels: np.ndarray) -> None:
    evaluation.figures |= {f'{name}/{metric}': value for metric, value in figures.items()}
    evaluation.queries[name] = queries | {'label': labels}


def _retrieval(embeddings: np.ndarray, labels: np.ndarray, temperature: float):
    """Returns (figures, figures of each image, similarities, indices) of images among each other."""
    relevant = metrics.relevant_counts(labels, labels, leave_one_out=True)
    depth = min(metrics.retrieval_depth(relevant), len(labels) - 1)
    similarities, indices = neighbours.top_k(embeddings, None, depth)
    queries = metrics.from_neighbours(labels[indices], labels, relevant)
    figures = {name: metrics.mean(values) for name, values in queries.items()}
    queries['pair_accuracy'] = metrics.pair_accuracy(embeddings, labels)
    figures['pair_accuracy'] = metrics.class_mean(queries['pair_accuracy'], labels)
    figures['pair_loss'] = metrics.pair_loss(embeddings, labels, temperature)
    return figures, queries, similarities, indices


def _evaluate_split(
    evaluation: Evaluation, name: str, splits: dict[str, Dataset], embed: Callable, temperature: float
) -> None:
    """Adds all that one split gives to the evaluation."""
    dataset, train, embeddings = splits[name], splits['train'], embed(name)
    labels, num_classes = dataset.labels, len(dataset.class_names)
    figures, queries, similarities, indices = _retrieval(embeddings, labels, temperature)

    votes, probed = _classified(dataset, train, embeddings, embed('train'))
    for metric, predicted in ((f'knn_accuracy_k{metrics.KNN_K}', votes), ('linear_probe_accuracy', probed)):
        queries[metric] = (predicted == labels).astype(np.float32)
        figures[metric] = float(np.mean(predicted == labels))
    figures |= representation.clustering(embeddings, labels, num_classes)
    figures['alignment'] = representation.alignment(embeddings, labels)
    figures['uniformity'] = representation.uniformity(embeddings)
    figures['effective_rank'] = representation.effective_rank(embeddings)

    _record(evaluation, name, figures, queries, labels)
    nearest, similarities = indices[:, :NEAREST], similarities[:, :NEAREST]
    evaluation.confusions[name, 'neighbours'] = metrics.confusion(labels, labels[nearest], num_classes)
    evaluation.confusions[name, 'knn'] = metrics.confusion(labels, votes, num_classes)
    if name == 'test':
        evaluation.pictures = pictures.worth_a_look(dataset, embeddings, nearest, similarities, votes)


def _evaluate_views(evaluation: Evaluation, name: str, splits: dict[str, Dataset], embed: Callable) -> None:
    """Adds all that one split of images without classes gives to the evaluation."""
    scored = 'train_sample' if name == 'train' else name
    dataset = splits[scored]
    figures, queries = views.all_figures(scored, embed)
    _record(evaluation, name, figures, queries, dataset.labels)
    if name == 'test':
        embeddings = embed(name)
        similarities, nearest = neighbours.top_k(embeddings, None, min(NEAREST, len(embeddings) - 1))
        evaluation.pictures = pictures.worth_a_look(dataset, embeddings, nearest, similarities, votes=dataset.labels)


def _unseen(splits: dict[str, Dataset], embed: Callable) -> dict[str, float]:
    """Returns the figures of the classes that training never saw, on test images.

    'unseen/' is retrieval among the images of unseen classes (where there are two or more), 'all/' among all test
    images. 'no_match/' tells unseen from seen by the similarity to the NEAREST-th training image, the deep
    nearest-neighbour score (Sun et al., 2022): auroc; and, where validation images set the threshold so that
    _FALSE_ALARMS of them fall below it, precision (the share of unseen images among those below, if any) and recall
    (the share of unseen images that are below).
    """
    seen, unseen = splits['test'], splits['unseen']
    groups = {}
    if len(unseen.class_names) > 1:
        groups['unseen'] = embed('unseen'), unseen.labels
    groups['all'] = (
        np.concatenate([embed('test'), embed('unseen')]),
        np.concatenate([seen.labels, unseen.labels + len(seen.class_names)]),
    )
    figures = {}
    for name, (embeddings, labels) in groups.items():
        figures |= {f'{name}/{metric}': value for metric, value in metrics.retrieval(embeddings, labels).items()}

    k = min(NEAREST, len(splits['train'].labels))
    scores = {
        split: neighbours.top_k(embed(split), embed('train'), k)[0][:, -1]
        for split in ('validation', 'test', 'unseen')
        if split in splits
    }
    figures['no_match/auroc'] = metrics.auroc(-scores['unseen'], -scores['test'])
    if 'validation' in splits:
        threshold = np.quantile(scores['validation'], _FALSE_ALARMS)
        below = {split: scores[split] < threshold for split in ('test', 'unseen')}
        figures['no_match/threshold'] = float(threshold)
        alarms = np.sum(below['test']) + np.sum(below['unseen'])
        if alarms:
            figures['no_match/precision'] = float(np.sum(below['unseen']) / alarms)
        figures['no_match/recall'] = float(np.mean(below['unseen']))
    return figures


def save(
    run: RunFolder, epoch: int, evaluation: Evaluation, class_names: tuple[str, ...], weights: str | None = None
) -> None:
    """Adds an evaluation to eval/<epoch>/, beside those of other splits.

    Writes <split>.npz, confusion.csv, pictures.npz where there are pictures, weights.json and, last, metrics.json,
    whose figures mark a split as finished.

    Args:
      run: whose evaluation it is.
      epoch: whose weights it measured.
      evaluation: of one split or more.
      class_names: of the confusions' rows and columns.
      weights: their digest, as of `checkpoint.weights_digest`; None: not known.
    """
    folder = run.evaluation(epoch)
    finished = folder / 'metrics.json'
    figures, confusions = {}, {}
    if finished.exists():
        figures, confusions = run.read_json(finished), run.read_confusions(epoch)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator='\n')
    rows.writerow(('split', 'kind', 'class', 'other_class', 'count', 'row_percent'))
    for (split, kind), matrix in (confusions | evaluation.confusions).items():
        percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        for row, name in enumerate(class_names):
            for column, other in enumerate(class_names):
                rows.writerow((split, kind, name, other, matrix[row, column], f'{percent[row, column]:.4f}'))
    for split, queries in evaluation.queries.items():
        write_arrays(folder / f'{split}.npz', jax.tree.map(_compact, queries))
    write(folder / 'confusion.csv', table.getvalue())
    if evaluation.pictures:
        write_arrays(folder / 'pictures.npz', evaluation.pictures)
    digests = run.measured_weights(epoch) | (dict.fromkeys(evaluation.queries, weights) if weights else {})
    if digests:
        write_json(folder / 'weights.json', digests)
    # Nothing stays of what these splits were measured at before, perhaps of other weights.
    measured = {name.partition('/')[0] for name in evaluation.figures}
    kept = {name: value for name, value in figures.items() if name.partition('/')[0] not in measured}
    write_json(finished, kept | evaluation.figures)


def _compact(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype == np.float64 else values
