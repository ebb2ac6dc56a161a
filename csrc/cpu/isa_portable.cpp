#include "alone.h"

namespace pxfast {

extern const Backend kBackendFp32_portable;
extern const Backend kBackendBf16_portable;

const Backend kBackendFp32_portable = make_backend<float>();
const Backend kBackendBf16_portable = make_backend<RoundedFloat>();

}  // namespace pxfast
