"""What TensorRT's ONNX parser reads: a graph can be checked for it on a machine without TensorRT."""

from __future__ import annotations

from typing import Any

from latency_models.backends.graph_file import load_graph

# The documented support matrix of the parser of this version, opsets 9 to 24. Custom operators come from plugins.
PARSER_VERSION = "10.15"
OPSETS = range(9, 25)
_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow
Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv
DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf
IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max
MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu
Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan
Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_NAMES.split())


def unsupported(model: Any) -> tuple[str, ...]:
    """What TensorRT would refuse in a graph by its parser's documentation; empty where nothing is known to be.

    Args:
        model: A ``ModelProto``, its bytes or its path.

    Returns:
        Operators with their domain where it is not ONNX's own (``com.microsoft.MatMulNBits``), or the opset.
    """
    graph = load_graph(model)
    found = sorted({(node.domain, node.op_type) for node in graph.graph.node})
    names = [f"{domain}.{name}" for domain, name in found if domain not in ("", "ai.onnx")]
    names += [name for domain, name in found if domain in ("", "ai.onnx") and name not in OPERATORS]
    opset = next((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return (*names, *(() if opset in OPSETS else (f"opset {opset}",)))
