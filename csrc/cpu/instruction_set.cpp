#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "loops.h"

namespace maekernels {

extern const InstructionSet isa_baseline;
#if defined(__x86_64__)
extern const InstructionSet isa_avx2;
extern const InstructionSet isa_avx512;
#endif

namespace {

// Best first.
std::vector<const InstructionSet*> available() {
  std::vector<const InstructionSet*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) found.push_back(&isa_avx512);
  if (__builtin_cpu_supports("avx2")) found.push_back(&isa_avx2);
#endif
  found.push_back(&isa_baseline);
  return found;
}

const InstructionSet& choose() {
  const auto sets = available();
  const char* wanted = std::getenv("MAEKERNELS_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *sets.front();
  std::string names;
  for (const InstructionSet* set : sets) {
    if (set->name == std::string(wanted)) return *set;
    names += std::string(names.empty() ? "" : ", ") + set->name;
  }
  throw std::invalid_argument(std::string("MAEKERNELS_CPU_ISA=") + wanted + ": must be one of " + names + " here");
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = choose();
  return chosen;
}

}  // namespace maekernels
