// aarch64 always has NEON, so no compiler flag asks for it: the macro keeps isa_portable.cpp free of it.
#define PXFAST_NEON
#include "alone.h"

namespace pxfast {

extern const Backend kBackendFp32_neon;
extern const Backend kBackendBf16_neon;

const Backend kBackendFp32_neon = make_backend<float>();
const Backend kBackendBf16_neon = make_backend<RoundedFloat>();

}  // namespace pxfast
