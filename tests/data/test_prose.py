import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.markup import plain_text
from potstill.data.prose import prose_paragraphs, reads_as_prose

NUMPY_STYLE = """Return the sum of the elements over an axis.

    The sum is taken over the flattened array. It wraps around when
    an integer type overflows.

    Parameters
    ----------
    a : array_like
        The elements that are to be summed by this function.
    axis : int, optional
        The axis along which the sum is taken by this function.

    Returns
    -------
    total : ndarray
        The sum of the elements of the array that was given.

    Notes
    -----
    Arithmetic is modular when integer types are used.

    Examples
    --------
    This example shows the sum of two numbers in a list.

    >>> np.sum([0.5, 1.5])
    2.0
    """

GOOGLE_STYLE = """Loads the weights of a model from a file.
    Args:
        path (str): The path of the file that is to be read.
            It may be relative to the current directory.
    Returns:
        The weights of the model in a dictionary.

    The file is closed when the function returns.

    Note:
        This function is not safe for use by several threads.

    Example::

        >>> load("weights.bin")
        This line belongs to the example of the function.

    ```python
    This is a line of code that is in a fence.
    ```
    """

SPHINX_STYLE = """Open a connection to the server.

    :param host: The name of the host that the client is to reach.
        It may also be an address of the host.
    :returns: The connection that was opened by the client.

    .. versionadded:: 2.1
       The name of the host may now be left out of the call.

    .. note:: The connection is closed when it is collected.

    .. code-block:: python

       This is a line of code and it is not prose.

    A literal follows this line of the text::

        This is a literal block that is not to be read.

    ======  ===========
    Name    Meaning
    ======  ===========
    a       The first.
    ======  ===========

    - This is an item of a list that is left out here.
    """


@pytest.mark.parametrize(
    ("docstring", "paragraphs"),
    [
        (
            NUMPY_STYLE,
            [
                "Return the sum of the elements over an axis.",
                "The sum is taken over the flattened array. It wraps around when an integer type overflows.",
                "Arithmetic is modular when integer types are used.",
            ],
        ),
        (
            GOOGLE_STYLE,
            [
                "Loads the weights of a model from a file.",
                "The file is closed when the function returns.",
                "This function is not safe for use by several threads.",
            ],
        ),
        (SPHINX_STYLE, ["Open a connection to the server.", "The connection is closed when it is collected."]),
    ],
    ids=["numpy", "google", "sphinx"],
)
def test_only_the_prose_of_each_style_is_kept(docstring, paragraphs):
    assert prose_paragraphs(docstring) == paragraphs


def test_a_sentence_that_is_no_prose_ends_its_paragraph():
    """What stands together in the text stood together in the docstring."""
    text = "The first of them is plain. Y = f(y) + {z}. The last of them is plain as well."
    assert prose_paragraphs(text) == ["The first of them is plain.", "The last of them is plain as well."]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("Use ``x`` and `y` here.", "Use x and y here."),
        ("See :func:`numpy.sum` and :class:`~a.b.Thing`.", "See numpy.sum and Thing."),
        ("See :ref:`the guide <guide>` or `this page <http://a.b>`_.", "See the guide or this page."),
        ("A *very* **strong** word [1]_ here.", "A very strong word here."),
        ("Read [the docs](http://a.b/c_(d)) now.", "Read the docs now."),
        ("Uses a [`Trainer`] here.", "Uses a Trainer here."),
        ("Process a .pth file , then stop .", "Process a .pth file, then stop."),
    ],
)
def test_markup_becomes_what_a_reader_sees(marked, plain):
    assert plain_text(marked) == plain


@pytest.mark.parametrize(
    "sentence",
    [
        "no capital at the start of this.",
        "This one has no full stop at the end",
        "Too short.",
        "The value of a_b c_d e_f g_h is i_j.",
        "The result is x = y + 1 in this case.",
        "See https://example.org for the details of this.",
        "An unbalanced (parenthesis is in this sentence.",
        "Copyright belongs to the author of this file.",
        "TODO: write the rest of the text here.",
    ],
)
def test_code_fragments_and_notices_do_not_read_as_prose(sentence):
    assert not reads_as_prose(sentence)


@given(st.text(alphabet=st.sampled_from("Ab .:`*_>-|=+\n\t(){}[]<>\"'#1~@\\"), max_size=300))
def test_any_docstring_at_all_is_survived(docstring):
    """Every paragraph that comes out is one line of sentences that read as prose."""
    for paragraph in prose_paragraphs(docstring):
        assert "\n" not in paragraph
        assert paragraph.strip()
