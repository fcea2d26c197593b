// The dynamic depth-wise convolution as it was published: one thread for one number, filters read from memory, 32-bit
// indices, the image's size compiled in. For comparison only. SCALAR, CHANNELS (of a group), WINDOW, HEIGHT and WIDTH
// are the compiler's options; x is [B, G * CHANNELS, HEIGHT, WIDTH], filters [B, G, WINDOW, WINDOW, HEIGHT, WIDTH].
#include "scalar.h"

#define PIXELS (HEIGHT * WIDTH)
#define AT(plane, y, x) (((plane) * HEIGHT + (y)) * WIDTH + (x))
#define INSIDE(y, x) ((y) >= 0 && (y) < HEIGHT && (x) >= 0 && (x) < WIDTH)

constexpr int kRadius = WINDOW / 2;

extern "C" __global__ void published_forward(const SCALAR* x, const SCALAR* filters, SCALAR* out, int count) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int px = index % WIDTH, py = index / WIDTH % HEIGHT, plane = index / PIXELS, group = plane / CHANNELS;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < WINDOW; i++)
#pragma unroll
    for (int t = 0; t < WINDOW; t++) {
      const int y = py + i - kRadius, column = px + t - kRadius;
      if (INSIDE(y, column))
        sum += widen(filters[AT((group * WINDOW + i) * WINDOW + t, py, px)]) * widen(x[AT(plane, y, column)]);
    }
  narrow(sum, out[index]);
}

extern "C" __global__ void published_grad_x(const SCALAR* grad, const SCALAR* filters, SCALAR* grad_x, int count) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int px = index % WIDTH, py = index / WIDTH % HEIGHT, plane = index / PIXELS, group = plane / CHANNELS;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < WINDOW; i++)
#pragma unroll
    for (int t = 0; t < WINDOW; t++) {
      const int y = py - i + kRadius, column = px - t + kRadius;
      if (INSIDE(y, column))
        sum += widen(filters[AT((group * WINDOW + i) * WINDOW + t, y, column)]) * widen(grad[AT(plane, y, column)]);
    }
  narrow(sum, grad_x[index]);
}

extern "C" __global__ void published_grad_filters(const SCALAR* grad, const SCALAR* x, SCALAR* grad_filters,
                                                  int count) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int px = index % WIDTH, py = index / WIDTH % HEIGHT, tap = index / PIXELS, group = tap / (WINDOW * WINDOW);
  const int y = py + tap / WINDOW % WINDOW - kRadius, column = px + tap % WINDOW - kRadius;
  float sum = 0;
  if (INSIDE(y, column))
#pragma unroll
    for (int c = 0; c < CHANNELS; c++)
      sum += widen(grad[AT(group * CHANNELS + c, py, px)]) * widen(x[AT(group * CHANNELS + c, y, column)]);
  narrow(sum, grad_filters[index]);
}
