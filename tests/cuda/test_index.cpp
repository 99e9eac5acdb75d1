// The kernels' index arithmetic against the PTX manual's, and boxes against their tensors.

#include <cstdio>
#include <set>

#include "index.h"

using namespace fsdino::cuda;

namespace {

int failures = 0, checks = 0;

void expect(bool holds, const char* what) {
  ++checks;
  if (!holds && ++failures < 20) printf("wrong: %s\n", what);
}

// Where a bulk copy in the swizzle of 128 bytes puts an element, by the PTX manual's picture: pieces
// of 16 bytes, in row r moved to r xor their number.
uint32_t copied_to(int row, int element) {
  const int piece = element / 8;
  return uint32_t(row * 128 + (piece ^ row % 8) * 16 + element % 8 * 2);
}

// Where tensor cores read element k of a row, by the manual's fields of a descriptor.
uint32_t read_from(uint64_t descriptor, int row, int k) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) * 16;
  const uint32_t stride = uint32_t(descriptor >> 32 & 0x3fff) * 16;
  return swizzled(start + row / 8 * stride + row % 8 * 128 + k * 2);
}

void check_swizzle() {
  std::set<uint32_t> places;
  for (uint32_t address = 0; address < 4096; ++address) {
    places.insert(swizzled(address));
    expect(swizzled(swizzled(address)) == address, "the swizzle undoes itself");
    expect(swizzled(address) / 128 == address / 128, "the swizzle stays in a row");
  }
  expect(places.size() == 4096, "no two addresses in one place");
  for (int piece = 0; piece < 8; ++piece) {
    std::set<uint32_t> banks;
    for (int row = 0; row < 8; ++row) banks.insert(swizzled(row * 128 + piece * 16) % 128);
    expect(banks.size() == 8, "a column of pieces takes all banks");
  }
}

// What a descriptor reads is what a copy has written, at any place of an operand in shared memory.
void check_descriptors() {
  for (uint32_t start = 1024; start + 256 * 128 <= 228 << 10; start += 1024 * 13) {
    const uint64_t whole = matrix_descriptor(start);
    expect((whole & 0x3fff) == start >> 4, "bits 0 to 13 are the start");
    expect((whole >> 14 & 3) == 0 && (whole >> 30 & 3) == 0, "bits between fields are 0");
    expect((whole >> 32 & 0x3fff) == 64, "8 rows are 1024 bytes");
    expect(whole >> 46 == 1u << 16, "no base offset; the swizzle of 128 bytes");
    std::set<uint32_t> places;
    for (int row = 0; row < 256; ++row) {
      for (int element = 0; element < kBoxDepth; ++element) {
        const int depth = element / kAsyncDepth * kAsyncDepth;
        const uint32_t at = read_from(descriptor_along(whole, depth), row, element - depth);
        expect(at == start + copied_to(row, element), "read where it was copied to");
        places.insert(at);
      }
    }
    expect(int(places.size()) == 256 * kBoxDepth, "each element in a place of its own");
  }
}

// A box's coordinates reach the features' elements through the map's strides.
void check_box_shape(int batches, bool one_batch, int layers, bool one_layer) {
  constexpr int kTokens = 15, kChannels = 24;
  const int64_t plane = int64_t(kTokens) * kChannels;
  const int64_t layer_stride = one_layer ? 0 : 2 * plane, batch_stride = one_batch ? 0 : 7 * plane;
  const BoxShape shape = box_shape(batches, batch_stride, layers, layer_stride, kTokens, kChannels, 4);
  expect(shape.box[0] * 2 == kBoxBytes && shape.box[1] == 4 && shape.box[2] == 1, "a box's sizes");
  for (int i = 1; i < kBoxDims; ++i) {
    expect(shape.strides[i] > 0 && shape.strides[i] % 16 == 0, "strides that a map can have");
  }
  for (int batch = 0; batch < batches; ++batch) {
    for (int layer = 0; layer < layers; ++layer) {
      const int64_t at[] = {7, 13, shape.sizes[2] > 1 ? layer : 0, shape.sizes[3] > 1 ? batch : 0};
      int64_t bytes = 0;
      for (int i = 0; i < kBoxDims; ++i) {
        expect(at[i] < shape.sizes[i], "coordinates in the map");
        bytes += at[i] * shape.strides[i];
      }
      const int64_t element = batch * batch_stride + layer * layer_stride + 13 * kChannels + 7;
      expect(bytes == 2 * element, "a coordinate's element");
    }
  }
}

}  // namespace

int main() {
  check_swizzle();
  check_descriptors();
  for (const int batches : {1, 2}) {
    for (const int layers : {1, 3}) {
      for (const bool one_batch : {false, true}) {
        for (const bool one_layer : {false, true}) {
          check_box_shape(batches, one_batch, layers, one_layer);
        }
      }
    }
  }
  expect(in_boxes(2, 768) && in_boxes(2, 8), "halves in whole pieces take boxes");
  expect(!in_boxes(4, 768) && !in_boxes(2, 0) && !in_boxes(2, 12), "others do not");
  printf("%d checks, %d wrong\n", checks, failures);
  return failures != 0;
}
