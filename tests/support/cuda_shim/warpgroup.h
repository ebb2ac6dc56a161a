// Host twins of a warpgroup's products in csrc/cuda/device.cuh; part of shim.h.
//
// A product reads its operands through their descriptors, as the hardware does, and adds to its sums when it is waited
// for; until then the sums show NaN. It ends the process when an operand changes meanwhile, or was copied there by a
// thread: the kernels leave that to the copy engine, and have no fence that would publish it.
#pragma once

namespace pxfast {
namespace cuda {
namespace shim {

// Where 8 channels of a row (or of an output) stand in shared memory; also checks that they may be read.
inline const Word* operand(uint64_t descriptor, int row, int channel) {
  const auto field = [&](int shift) { return (size_t)(descriptor >> shift & 0x3fff) << 4; };
  if (descriptor >> 62 != 0 || (descriptor >> 49 & 7) != 0) fail("a matrix is described as swizzled");
  const size_t at = field(0) + row / 8 * field(32) + channel / 8 * field(16) + row % 8 * 16;
  Block& b = block();
  if (at + 16 > b.shared.size()) fail("a matrix leaves the shared memory");
  return reinterpret_cast<const Word*>(b.shared.data() + at);
}

// The part of a product that this thread computes: 2 rows, and 20 outputs, 16 channels each.
struct Operands {
  uint32_t row[2][8], output[20][8];

  Operands(uint64_t a, uint64_t b) {
    const int thread = fibers::thread() % 128, lane = thread % 32;
    for (int channel = 0; channel < 16; channel += 8) {
      for (int r = 0; r < 2; ++r)
        copy_words(row[r] + channel / 2, operand(a, thread / 32 * 16 + lane / 4 + 8 * r, channel), 16);
      for (int n = 0; n < 20; ++n)
        copy_words(output[n] + channel / 2, operand(b, n / 2 * 8 + lane % 4 * 2 + n % 2, channel), 16);
    }
  }
  uint64_t digest() const {
    uint64_t sum = 0;
    for (const auto& words : row)
      for (uint32_t word : words) sum = sum * 0x9e3779b97f4a7c15u + word;
    for (const auto& words : output)
      for (uint32_t word : words) sum = sum * 0x9e3779b97f4a7c15u + word;
    return sum;
  }
  static void check_published(uint64_t a, uint64_t b) {
    const int thread = fibers::thread() % 128, lane = thread % 32;
    const auto check = [](const Word* from) {
      Block& here = block();
      if (here.by_thread[(reinterpret_cast<const unsigned char*>(from) - here.shared.data()) / 16])
        fail("a product reads a copy that no fence has published");
    };
    for (int channel = 0; channel < 16; channel += 8) {
      for (int r = 0; r < 2; ++r) check(operand(a, thread / 32 * 16 + lane / 4 + 8 * r, channel));
      for (int n = 0; n < 20; ++n) check(operand(b, n / 2 * 8 + lane % 4 * 2 + n % 2, channel));
    }
  }
  void add_to(float (&sums)[5][8]) const {
    const auto value = [](const uint32_t* words, int k) { return from_bf16(words[k / 2] >> k % 2 * 16 & 0xffff); };
    for (int u = 0; u < 5; ++u)
      for (int i = 0; i < 8; ++i) {
        const uint32_t* x = row[i % 4 / 2];
        const uint32_t* y = output[4 * u + i / 4 * 2 + i % 2];
        for (int k = 0; k < 16; ++k) sums[u][i] += value(x, k) * value(y, k);
      }
  }
};

inline Sums& sums_behind(float (&shown)[5][8]) {
  for (Sums& sums : block().thread[fibers::thread()].sums)
    if (sums.pending > 0 && sums.shown == shown) return sums;
  for (Sums& sums : block().thread[fibers::thread()].sums) {
    if (sums.pending > 0) continue;
    sums.shown = shown;
    std::memcpy(sums.value, shown, sizeof sums.value);
    return sums;
  }
  fail("a thread has too many sums under way");
}

}  // namespace shim

inline void begin_products() { shim::block().thread[fibers::thread()].begun = true; }

inline void multiply_group(float (&sums)[5][8], uint64_t a, uint64_t b) {
  shim::Thread& t = shim::block().thread[fibers::thread()];
  if (!t.begun) shim::fail("a product without begin_products");
  if (t.products == shim::kMaxProducts) shim::fail("too many products under way");
  shim::Operands::check_published(a, b);
  shim::Sums& behind = shim::sums_behind(sums);
  ++behind.pending;
  for (auto& unit : sums)
    for (float& sum : unit) sum = std::nanf("");
  t.product[t.products++] = {&behind, a, b, shim::Operands(a, b).digest()};
}

inline void commit_products() {
  shim::Thread& t = shim::block().thread[fibers::thread()];
  t.begun = false;
  if (t.product_groups == shim::kMaxProducts) shim::fail("too many groups of products under way");
  t.product_group[t.product_groups++] = t.products;
}

template <int kPending>
void wait_products() {
  shim::Thread& t = shim::block().thread[fibers::thread()];
  const int finished = t.product_groups > kPending ? t.product_groups - kPending : 0;
  if (finished == 0) return;
  const int products = t.product_group[finished - 1];
  for (int i = 0; i < products; ++i) {
    const shim::Product& product = t.product[i];
    const shim::Operands operands(product.a, product.b);
    if (operands.digest() != product.digest) shim::fail("an operand has changed before its product was waited for");
    operands.add_to(product.sums->value);
    if (--product.sums->pending == 0) std::memcpy(product.sums->shown, product.sums->value, sizeof product.sums->value);
  }
  std::memmove(t.product, t.product + products, (t.products - products) * sizeof t.product[0]);
  t.products -= products;
  t.product_groups -= finished;
  for (int g = 0; g < t.product_groups; ++g) t.product_group[g] = t.product_group[g + finished] - products;
}

inline void hold_here(float&) {}

}  // namespace cuda
}  // namespace pxfast
