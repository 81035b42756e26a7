"""Learning from images: COG's networks, and batches of cropped images.

Networks and augmentation follow Singh et al. 2020 (arXiv:2010.14500): three
3x3 convolutions of 16 filters, the first two with max-pooling, then layers of
1024, 512 and 256 units, with the action joined to a critic after its
convolutions. phi(s, a) is the critic's last hidden layer, 256 wide.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from batch_rl_dr3.control import feature_critic

# Pixels that an image may be shifted by, in each direction.
_CROP_PADDING = 4
_CROP_SALT = 0xC205


def image_layers(filters: Sequence[int] = (16, 16, 16)) -> list[Any]:
  """Returns layers from uint8 [B, h, w, 3] to float32 [B, flat].

  Args:
    filters: of each 3x3 convolution; the first two are followed by pooling.
  """
  layers = [tf.keras.layers.Rescaling(1.0 / 255.0)]
  for i, width in enumerate(filters):
    layers.append(
      tf.keras.layers.Conv2D(width, 3, padding='same', activation='relu')
    )
    if i < 2:
      layers.append(tf.keras.layers.MaxPool2D(2))
  return [*layers, tf.keras.layers.Flatten()]


class ImageCriticNetwork(feature_critic.FeatureCriticNetwork):
  """A critic of images; the action joins after the convolutions."""

  def __init__(
    self,
    input_tensor_spec: Any,
    filters: Sequence[int] = (16, 16, 16),
    name: str = 'ImageCritic',
    **kwargs: Any,
  ):
    """Creates the network.

    Args:
      input_tensor_spec: the specs of (image, action).
      filters: see `image_layers`.
      name: the network's name.
      **kwargs: further arguments of `FeatureCriticNetwork`.
    """
    super().__init__(input_tensor_spec, name=name, **kwargs)
    self._observation_layers = image_layers(filters)


def random_crops(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Returns images shifted by up to 4 pixels, as if padded by their edges.

  Args:
    images: uint8 [B, h, w, c].
    seed: int32 [2]; the same shifts for the same seed.
  """
  _, height, width, _ = images.shape
  offsets = tf.random.stateless_uniform(
    [tf.shape(images)[0], 2],
    seed,
    -_CROP_PADDING,
    _CROP_PADDING + 1,
    tf.int32,
  )

  def shifted(axis: int, size: int) -> tf.Tensor:
    places = tf.range(size)[tf.newaxis] + offsets[:, axis : axis + 1]
    return tf.clip_by_value(places, 0, size - 1)

  rows = tf.gather(images, shifted(0, height), axis=1, batch_dims=1)
  return tf.gather(rows, shifted(1, width), axis=2, batch_dims=1)
