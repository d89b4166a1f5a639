"""From what JAX traces to an ONNX graph: as much of it as encoders are made of. The only module that knows ONNX."""

from collections.abc import Callable

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
BATCH = 'batch'  # the name of the first axis of inputs and outputs, of any length

_TYPES = {
    'bool': TensorProto.BOOL,
    'float32': TensorProto.FLOAT,
    'int32': TensorProto.INT32,
    'int64': TensorProto.INT64,
    'uint8': TensorProto.UINT8,
}
# Those that take and return arrays of one shape.
_ELEMENTWISE = {
    'abs': 'Abs',
    'add': 'Add',
    'add_any': 'Add',
    'and': 'And',
    'div': 'Div',
    'eq': 'Equal',
    'erf': 'Erf',
    'exp': 'Exp',
    'ge': 'GreaterOrEqual',
    'gt': 'Greater',
    'le': 'LessOrEqual',
    'log': 'Log',
    'logistic': 'Sigmoid',
    'lt': 'Less',
    'max': 'Max',
    'min': 'Min',
    'mul': 'Mul',
    'neg': 'Neg',
    'not': 'Not',
    'or': 'Or',
    'pow': 'Pow',
    'sqrt': 'Sqrt',
    'sub': 'Sub',
    'tanh': 'Tanh',
}
_REDUCTIONS = {'reduce_max': 'ReduceMax', 'reduce_min': 'ReduceMin', 'reduce_sum': 'ReduceSum'}
# Those that are no more than the function that they hold, by the name it has among their parameters.
_CALLS = {
    'jit': 'jaxpr',
    'pjit': 'jaxpr',
    'closed_call': 'call_jaxpr',
    'checkpoint': 'jaxpr',
    'remat2': 'jaxpr',
    'custom_jvp_call': 'call_jaxpr',
    'custom_vjp_call': 'call_jaxpr',
}


class NoForm(Exception):
    """A traced operation that this module has no ONNX form of; it names the operation."""


def trace(function: Callable, shape: tuple[int, ...], dtype, about: dict[str, str]) -> onnx.ModelProto:
    """Returns a function as a checked ONNX model, its constants within, float32 throughout.

    Args:
      function: from an array [batch, *shape] to one [batch, ...], whatever the batch's size.
      shape: of one example.
      dtype: of the argument.
      about: what is written into the model's metadata.

    Raises:
      NoForm: the function does something that is not of the kind that encoders do.
    """
    (batch,) = jax.export.symbolic_shape(BATCH)
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *shape), dtype))
    (out,) = closed.out_avals
    if not out.shape or (out.shape[0] is not batch and out.shape[0] != batch):
        raise NoForm('a result that is not one row for each example')
    graph = _Graph()
    (result,) = graph.convert(closed.jaxpr, closed.consts, ['images'])
    graph.nodes.append(helper.make_node('Identity', [graph.name(result)], ['embeddings']))
    inputs, outputs = (
        helper.make_tensor_value_info(name, _TYPES[aval.dtype.name], [BATCH, *aval.shape[1:]])
        for name, aval in (('images', closed.in_avals[0]), ('embeddings', out))
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, 'encoder', [inputs], [outputs], graph.constants),
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=9,
        producer_name='simclr_cifar',
    )
    helper.set_model_props(model, about)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NoForm(str(error).splitlines()[0]) from error
    return model


class _Graph:
    """Nodes and constants so far; a value is its name, or an array where it does not depend on the argument."""

    def __init__(self):
        self.nodes, self.constants, self._names = [], [], {}

    def name(self, value) -> str:
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        key = array.dtype, array.shape, array.tobytes()  # Weights may be used twice, and are kept once.
        if key not in self._names:
            self._names[key] = f'constant_{len(self.constants)}'
            self.constants.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]

    def add(self, operation: str, *inputs, **attributes) -> str:
        output = f'{operation.lower()}_{len(self.nodes)}'
        names = [self.name(value) for value in inputs]
        self.nodes.append(helper.make_node(operation, names, [output], **attributes))
        return output

    def convert(self, jaxpr, constants, arguments) -> list:
        values = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

        def value_of(atom):
            return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            inputs = [value_of(atom) for atom in equation.invars]
            outputs = self._convert_equation(equation, inputs)
            values.update(zip(equation.outvars, outputs, strict=True))
        return [value_of(atom) for atom in jaxpr.outvars]

    def _convert_equation(self, equation, inputs) -> list:
        primitive, parameters = equation.primitive.name, equation.params
        if primitive in _CALLS:
            inner = parameters[_CALLS[primitive]]
            closed = isinstance(inner, core.ClosedJaxpr)
            return self.convert(inner.jaxpr if closed else inner, inner.consts if closed else [], inputs)
        if not any(isinstance(value, str) for value in inputs):
            outputs = equation.primitive.bind(*map(jax.numpy.asarray, inputs), **parameters)
            return list(outputs) if equation.primitive.multiple_results else [outputs]
        if primitive == 'optimization_barrier':
            return inputs
        if primitive in _ELEMENTWISE:
            if primitive in ('and', 'or', 'not') and equation.outvars[0].aval.dtype != bool:
                raise NoForm(f'{primitive} of numbers')
            return [self.add(_ELEMENTWISE[primitive], *inputs)]
        if primitive in _REDUCTIONS:
            axes = np.array(parameters['axes'], np.int64)
            return [self.add(_REDUCTIONS[primitive], *inputs, axes, keepdims=0)]
        form = getattr(self, f'_{primitive}', None)
        if form is None:
            raise NoForm(primitive)
        return [form(equation, *inputs)]

    def _convert_element_type(self, equation, value):
        before, after = equation.invars[0].aval.dtype, np.dtype(equation.params['new_dtype'])
        if after.name not in _TYPES or (after.kind == 'u' and before.kind != 'b'):
            raise NoForm(f'{before.name} to {after.name}')
        return self.add('Cast', value, to=_TYPES[np.dtype(equation.params['new_dtype']).name])

    def _copy(self, equation, value):
        return value

    def _stop_gradient(self, equation, value):
        return value

    def _square(self, equation, value):
        return self.add('Mul', value, value)

    def _integer_pow(self, equation, value):
        return self.add('Pow', value, np.float32(equation.params['y']))

    def _rsqrt(self, equation, value):
        return self.add('Reciprocal', self.add('Sqrt', value))

    def _erfc(self, equation, value):
        return self.add('Sub', np.float32(1), self.add('Erf', value))

    def _select_n(self, equation, which, *cases):
        if len(cases) != 2:
            raise NoForm('select_n of other than two cases')
        if_false, if_true = cases
        return self.add('Where', which, if_true, if_false)

    def _reshape(self, equation, value):
        return self._reshaped(value, equation.outvars[0].aval.shape)

    def _squeeze(self, equation, value):
        return self._reshaped(value, equation.outvars[0].aval.shape)

    def _expand_dims(self, equation, value):
        return self._reshaped(value, equation.outvars[0].aval.shape)

    def _reshaped(self, value, shape):
        # One side may be open, whose length the others tell.
        sides = [side if isinstance(side, int) else -1 for side in shape]
        if sides.count(-1) > 1:
            raise NoForm('reshape of two axes that depend on the batch')
        return self.add('Reshape', value, np.array(sides, np.int64))

    def _broadcast_in_dim(self, equation, value):
        shape, dimensions = equation.params['shape'], equation.params['broadcast_dimensions']
        before = equation.invars[0].aval.shape
        sides = [1] * len(shape)
        for axis, dimension in enumerate(dimensions):
            sides[dimension] = before[axis]
        value = self._reshaped(value, sides)
        # What stays of length 1 is as long as the other operand in ONNX, which broadcasts; the rest is written out.
        if all(side == wanted for side, wanted in zip(sides, shape, strict=True)):
            return value
        if not all(isinstance(side, int) for side in shape if side not in sides):
            raise NoForm('broadcast along the batch')
        return self.add('Expand', value, np.array([side if isinstance(side, int) else 1 for side in shape], np.int64))

    def _transpose(self, equation, value):
        return self.add('Transpose', value, perm=list(equation.params['permutation']))

    def _concatenate(self, equation, *values):
        return self.add('Concat', *values, axis=equation.params['dimension'])

    def _rev(self, equation, value):
        axes = np.array(equation.params['dimensions'], np.int64)
        ends = np.full(len(axes), np.iinfo(np.int64).min)
        return self.add('Slice', value, np.full(len(axes), -1), ends, axes, np.full(len(axes), -1))

    def _slice(self, equation, value):
        starts, limits = equation.params['start_indices'], equation.params['limit_indices']
        strides = equation.params['strides'] or (1,) * len(starts)
        axes = [
            axis
            for axis, whole in enumerate(equation.invars[0].aval.shape)
            if (starts[axis], limits[axis], strides[axis]) != (0, whole, 1)
        ]
        given = [np.array([of_axes[axis] for axis in axes], np.int64) for of_axes in (starts, limits)]
        steps = np.array([strides[axis] for axis in axes], np.int64)
        return self.add('Slice', value, *given, np.array(axes, np.int64), steps)

    def _pad(self, equation, value, filling):
        config = equation.params['padding_config']
        if any(between for _, _, between in config):
            raise NoForm('pad between elements')
        pads = np.array([low for low, _, _ in config] + [high for _, high, _ in config], np.int64)
        return self.add('Pad', value, pads, filling)

    def _dot_general(self, equation, left, right):
        (left_axes, right_axes), batch = equation.params['dimension_numbers']
        left_rank, right_rank = (len(atom.aval.shape) for atom in equation.invars)
        if batch != ((), ()) or (left_axes, right_axes) != ((left_rank - 1,), (0,)) or right_rank != 2:
            raise NoForm('dot_general other than a product with a matrix')
        return self.add('MatMul', left, right)

    def _conv_general_dilated(self, equation, inputs, kernel):
        parameters = equation.params
        layout = parameters['dimension_numbers']
        if isinstance(kernel, str) or set(parameters['lhs_dilation']) != {1} or parameters['batch_group_count'] != 1:
            raise NoForm('conv_general_dilated other than with a fixed kernel')
        if min(min(sides) for sides in parameters['padding']) < 0:
            raise NoForm('conv_general_dilated that cuts off')
        to_channels_first, kernel_layout, out = layout.lhs_spec, layout.rhs_spec, layout.out_spec
        convolved = self.add(
            'Conv',
            self.add('Transpose', inputs, perm=list(to_channels_first)),
            np.transpose(kernel, kernel_layout),
            strides=list(parameters['window_strides']),
            pads=[low for low, _ in parameters['padding']] + [high for _, high in parameters['padding']],
            dilations=list(parameters['rhs_dilation']),
            group=parameters['feature_group_count'],
        )
        return self.add('Transpose', convolved, perm=list(np.argsort(out)))
