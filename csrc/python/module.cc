// fastckpt._core: the only place where the core meets Python.
//
// Written against the limited C API, so that one build serves Python 3.11 and all later ones. Every
// function takes buffers and integers, drops the GIL while it works, and turns a Status into an
// exception. The calling thread does not work itself on anything long: it waits for the workers and
// looks at Python's signals every few milliseconds, so that Ctrl-C is heard.

#include "common.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "../core/bytes.h"
#include "../core/constants.h"
#include "../core/cpu.h"
#include "../core/crc32.h"
#include "../core/hash.h"
#include "../core/residency.h"
#include "../core/scan.h"
#include "../core/transfer.h"
#include "parity.h"
#include "parity_tally.h"
#include "planes.h"
#include "planes_files.h"
#include "slot_filler.h"

namespace {

using namespace fastckpt::python;  // NOLINT: the helpers made for this file and its like

using fastckpt::Status;

// Below this many bytes, dropping the GIL costs more than it gains.
constexpr Py_ssize_t kHoldGilBytes = 32 * 1024;

// As many as there are requests, where those wait for the disk.
long ThreadsFor(long threads, uint64_t bytes, const fastckpt::TransferRequest& request) {
  const long useful = UsefulThreads(threads, bytes);
  if (!request.writes_directly() || request.extent_count < 2) return useful;
  const long requests = static_cast<long>(std::min<size_t>(request.extent_count, kMaxThreads));
  return std::max(useful, std::min(threads, requests));
}

// --- which instructions run --------------------------------------------------------------------

PyObject* SimdLevel(PyObject*, PyObject*) {
  return PyUnicode_FromString(fastckpt::SimdLevelName(fastckpt::CurrentSimdLevel()));
}

PyObject* SimdLevels(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  if (names == nullptr) return nullptr;
  for (const fastckpt::SimdLevel level : fastckpt::kSimdLevels) {
    if (!fastckpt::SimdLevelSupported(level)) continue;
    PyObject* name = PyUnicode_FromString(fastckpt::SimdLevelName(level));
    const bool failed = name == nullptr || PyList_Append(names, name) != 0;
    Py_XDECREF(name);
    if (failed) {
      Py_DECREF(names);
      return nullptr;
    }
  }
  PyObject* result = PyList_AsTuple(names);
  Py_DECREF(names);
  return result;
}

PyObject* SetSimdLevel(PyObject*, PyObject* arguments) {
  const char* name = nullptr;
  if (!PyArg_ParseTuple(arguments, "s", &name)) return nullptr;
  for (const fastckpt::SimdLevel level : fastckpt::kSimdLevels) {
    if (std::strcmp(name, fastckpt::SimdLevelName(level)) != 0) continue;
    if (!fastckpt::SimdLevelSupported(level))
      return PyErr_Format(PyExc_ValueError, "this machine does not support %s", name);
    fastckpt::SetSimdLevel(level);
    Py_RETURN_NONE;
  }
  return PyErr_Format(PyExc_ValueError, "unknown SIMD level: %s", name);
}

// --- buffers -----------------------------------------------------------------------------------

PyObject* Address(PyObject*, PyObject* object) {
  Buffer buffer;
  if (!buffer.Get(object, PyBUF_SIMPLE)) return nullptr;
  return PyLong_FromUnsignedLongLong(fastckpt::AddressOf(buffer.data()));
}

PyObject* LeafDigests(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"buffer", "threads", nullptr};
  PyObject* object = nullptr;
  long threads = 1;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|l", const_cast<char**>(names), &object,
                                   &threads) ||
      !CheckThreads(threads))
    return nullptr;
  Buffer buffer;
  if (!buffer.Get(object, PyBUF_SIMPLE)) return nullptr;
  // Zero or more digests of 8 bytes for 16 KiB of data each: far below the largest Py_ssize_t.
  const size_t count = static_cast<size_t>(fastckpt::LeafCount(buffer.size()));
  std::vector<uint64_t> leaves;
  try {
    leaves.resize(count);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  if (static_cast<Py_ssize_t>(buffer.size()) < kHoldGilBytes) {
    fastckpt::HashLeaves(buffer.data(), buffer.size(), leaves.data());
  } else {
    const fastckpt::Extent extent = {fastckpt::AddressOf(buffer.data()), 0, buffer.size(), 0};
    fastckpt::TransferRequest request;
    request.extents = &extent;
    request.extent_count = 1;
    request.leaves = leaves.data();
    request.leaf_count = count;
    fastckpt::Transfer transfer(request);
    if (!RunJob(&transfer, UsefulThreads(threads, extent.size), Py_None))
      return nullptr;
    std::vector<fastckpt::ReadFault> faults;
    const Status status = transfer.Finish(&faults);
    if (!status.ok()) return Raise(status);
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(leaves.data()),
                                   static_cast<Py_ssize_t>(count * sizeof leaves[0]));
}

PyObject* Crc32(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"buffer", "value", nullptr};
  PyObject* object = nullptr;
  unsigned int value = 0;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|I", const_cast<char**>(names), &object,
                                   &value))
    return nullptr;
  Buffer buffer;
  if (!buffer.Get(object, PyBUF_SIMPLE)) return nullptr;
  if (static_cast<Py_ssize_t>(buffer.size()) < kHoldGilBytes) {
    value = fastckpt::Crc32(value, buffer.data(), buffer.size());
  } else {
    WithoutGil without_gil;
    value = fastckpt::Crc32(value, buffer.data(), buffer.size());
  }
  return PyLong_FromUnsignedLong(value);
}

PyObject* Crc32Combine(PyObject*, PyObject* arguments) {
  unsigned int a = 0;
  unsigned int b = 0;
  PyObject* size = nullptr;
  if (!PyArg_ParseTuple(arguments, "IIO", &a, &b, &size)) return nullptr;
  const unsigned long long size_b = PyLong_AsUnsignedLongLong(size);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return PyLong_FromUnsignedLong(fastckpt::Crc32Combine(a, b, size_b));
}

// --- jobs --------------------------------------------------------------------------------------

PyObject* TransferExtents(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"source_fd", "sink_fd",          "extents",        "leaves",
                                "crcs",      "threads",          "source_direct_fd",
                                "sink_direct_fd", "mapped",      "release",        "progress",
                                nullptr};
  fastckpt::TransferRequest request;
  PyObject* extents_object = nullptr;
  PyObject* leaves_object = nullptr;
  PyObject* crcs_object = nullptr;
  long threads = 0;  // required: 0 is refused below
  int mapped = 0;
  int release = 0;
  PyObject* progress = Py_None;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iiOOO|$liippO", const_cast<char**>(names),
                                   &request.source_fd, &request.sink_fd, &extents_object,
                                   &leaves_object, &crcs_object, &threads,
                                   &request.source_direct_fd, &request.sink_direct_fd, &mapped,
                                   &release, &progress) ||
      !CheckThreads(threads))
    return nullptr;
  request.mapped = mapped != 0;
  request.release = release != 0;

  Buffer extents;
  Buffer leaves;
  Buffer crcs;
  if (!GetExtents(extents_object, &extents, &request) ||
      !GetResults(leaves_object, crcs_object, &leaves, &crcs, &request))
    return nullptr;

  uint64_t total = 0;
  Status status = request.Check(&total);
  if (!status.ok()) return Raise(status);
  fastckpt::Transfer transfer(request);
  if (!RunJob(&transfer, ThreadsFor(threads, total, request), progress)) return nullptr;
  std::vector<fastckpt::ReadFault> faults;
  status = transfer.Finish(&faults);
  if (!status.ok()) return Raise(status);
  return FaultList(faults);
}

PyObject* FindBlocks(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"fd", "magic", "start", "stop", "threads", nullptr};
  int fd = -1;
  PyObject* start_object = nullptr;
  PyObject* stop_object = nullptr;
  long threads = 1;
  const char* magic = nullptr;
  Py_ssize_t magic_size = 0;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iy#OO|$l", const_cast<char**>(names), &fd,
                                   &magic, &magic_size, &start_object, &stop_object, &threads) ||
      !CheckThreads(threads))
    return nullptr;
  if (magic_size != static_cast<Py_ssize_t>(fastckpt::kMagicSize))
    return PyErr_Format(PyExc_ValueError, "magic: %zd bytes, not 8", magic_size);
  const unsigned long long start = PyLong_AsUnsignedLongLong(start_object);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const unsigned long long stop = PyLong_AsUnsignedLongLong(stop_object);
  if (PyErr_Occurred() != nullptr) return nullptr;

  fastckpt::BlockScan scan(fd, reinterpret_cast<const uint8_t*>(magic), start, stop);
  const uint64_t bytes = stop > start ? stop - start : 0;
  if (!RunJob(&scan, UsefulThreads(threads, bytes), Py_None)) return nullptr;
  std::vector<uint64_t> offsets;
  const Status status = scan.Finish(&offsets);
  if (!status.ok()) return Raise(status);
  PyObject* list = PyList_New(0);
  for (const uint64_t offset : offsets) {
    if (list == nullptr) break;
    PyObject* number = PyLong_FromUnsignedLongLong(offset);
    if (number == nullptr || PyList_Append(list, number) != 0) Py_CLEAR(list);
    Py_XDECREF(number);
  }
  return list;
}

PyObject* CountCached(PyObject*, PyObject* arguments) {
  int fd = -1;
  unsigned long long size = 0;
  if (!PyArg_ParseTuple(arguments, "iK", &fd, &size)) return nullptr;
  const int64_t cached = fastckpt::CachedBytes(fd, size);
  if (cached < 0) Py_RETURN_NONE;
  return PyLong_FromLongLong(cached);
}

// --- the module --------------------------------------------------------------------------------

PyMethodDef methods[] = {
    {"simd_level", SimdLevel, METH_NOARGS,
     PyDoc_STR("simd_level()\n--\n\nThe instruction set the kernels use now.")},
    {"simd_levels", SimdLevels, METH_NOARGS,
     PyDoc_STR("simd_levels()\n--\n\nThe instruction sets this machine can run.")},
    {"set_simd_level", SetSimdLevel, METH_VARARGS,
     PyDoc_STR("set_simd_level(name, /)\n--\n\nUse another instruction set.")},
    {"address", Address, METH_O,
     PyDoc_STR("address(buffer, /)\n--\n\nThe address of a contiguous buffer.")},
    {"leaf_digests", WithKeywords(LeafDigests),
     METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("leaf_digests(buffer, threads=1)\n--\n\nThe leaf digests of a buffer.")},
    {"crc32", WithKeywords(Crc32),
     METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("crc32(buffer, value=0)\n--\n\nThe CRC-32 of a buffer, as zlib has it.")},
    {"crc32_combine", Crc32Combine, METH_VARARGS,
     PyDoc_STR("crc32_combine(a, b, size_b, /)\n--\n\nThe CRC-32 of two parts put together.")},
    {"transfer", WithKeywords(TransferExtents),
     METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("transfer(source_fd, sink_fd, extents, leaves, crcs, *, threads, "
               "source_direct_fd=-1, sink_direct_fd=-1, mapped=False, release=False, "
               "progress=None)\n--\n\n"
               "Move extents from source to sink and hash them on the way.")},
    {"find_blocks", WithKeywords(FindBlocks),
     METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("find_blocks(fd, magic, start, stop, *, threads=1)\n--\n\n"
               "The offsets at which a block's magic stands.")},
    {"cached_bytes", CountCached, METH_VARARGS,
     PyDoc_STR("cached_bytes(fd, size, /)\n--\n\n"
               "How many of the first bytes of a file the page cache holds.")},
    {nullptr, nullptr, 0, nullptr}};

bool AddMagic(PyObject* module, const char* name, const char* magic) {
  PyObject* value = PyBytes_FromStringAndSize(magic, fastckpt::kMagicSize);
  const bool added = value != nullptr && PyModule_AddObjectRef(module, name, value) == 0;
  Py_XDECREF(value);
  return added;
}

int AddMembers(PyObject* module) {
  const struct {
    const char* name;
    size_t value;
  } numbers[] = {{"LEAF_SIZE", fastckpt::kLeafSize},
                 {"CHUNK_SIZE", fastckpt::kChunkSize},
                 {"ALIGNMENT", fastckpt::kAlignment},
                 {"PACK_ALIGNMENT", fastckpt::kPackAlignment},
                 {"DIGEST_SIZE", fastckpt::kDigestSize},
                 {"LEAF_DIGEST_SIZE", fastckpt::kLeafDigestSize},
                 {"MAGIC_SIZE", fastckpt::kMagicSize},
                 {"FORMAT_VERSION", fastckpt::kFormatVersion},
                 {"PLANES_LAYOUT", fastckpt::kPlanesLayout},
                 {"PLANES_TILE", fastckpt::kPlanesTile},
                 {"PLANES_GROUP", fastckpt::kPlanesGroup},
                 {"PLANES_BLOCK_LOG2", fastckpt::kPlanesBlockLog2},
                 {"PLANES_BLOCK_LOG2_MAX", fastckpt::kPlanesBlockLog2Max},
                 {"PLANES_HEAD_SIZE", fastckpt::kPlanesHeadSize},
                 {"PLANES_BLOCK_HEAD_SIZE", fastckpt::kPlanesBlockHeadSize},
                 {"PLANES_PLANE_ROW_SIZE", fastckpt::kPlanesPlaneRowSize},
                 {"PLANES_MASKED", fastckpt::kPlanesMasked},
                 {"PLANES_MAX_LEVELS", fastckpt::kPlanesMaxLevels},
                 {"PLANES_MAX_WIDTH", fastckpt::kPlanesMaxWidth},
                 {"PLANES_MODE_RAW", fastckpt::kPlanesModeRaw},
                 {"PLANES_MODE_PACKED", fastckpt::kPlanesModePacked},
                 {"PLANES_MODE_NESTED", fastckpt::kPlanesModeNested},
                 {"PLANES_KIND_BYTES", fastckpt::kPlanesKindBytes},
                 {"PLANES_KIND_WORDS", fastckpt::kPlanesKindWords},
                 {"PLANES_KIND_DOUBLE_WORDS", fastckpt::kPlanesKindDoubleWords},
                 {"PLANES_KIND_QUAD_WORDS", fastckpt::kPlanesKindQuadWords},
                 {"PLANES_KIND_FLOAT16", fastckpt::kPlanesKindFloat16},
                 {"PLANES_KIND_BFLOAT16", fastckpt::kPlanesKindBfloat16},
                 {"PLANES_KIND_FLOAT32", fastckpt::kPlanesKindFloat32},
                 {"PLANES_KIND_FLOAT64", fastckpt::kPlanesKindFloat64},
                 {"PLANES_KIND_FLOAT8_E4", fastckpt::kPlanesKindFloat8E4},
                 {"PLANES_KIND_FLOAT8_E5", fastckpt::kPlanesKindFloat8E5},
                 {"PLANES_KIND_NIBBLES", fastckpt::kPlanesKindNibbles}};
  for (const auto& number : numbers)
    if (PyModule_AddIntConstant(module, number.name, static_cast<long>(number.value)) != 0)
      return -1;
  const bool added = AddMagic(module, "MAGIC_SUPERBLOCK", fastckpt::kMagicSuperblock) &&
                     AddMagic(module, "MAGIC_MANIFEST", fastckpt::kMagicManifest) &&
                     AddMagic(module, "MAGIC_RECORD", fastckpt::kMagicRecord) &&
                     AddMagic(module, "MAGIC_INDEX", fastckpt::kMagicIndex) &&
                     AddMagic(module, "MAGIC_FOOTER", fastckpt::kMagicFooter) &&
                     AddMagic(module, "MAGIC_SOURCE", fastckpt::kMagicSource);
  return added && AddSlotFiller(module) && AddPlanes(module) && AddPlanesFiles(module) &&
                 AddParity(module) && AddParityTally(module)
             ? 0 : -1;
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(AddMembers)},
#if defined(Py_mod_gil)
                            {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
                            {0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "fastckpt._core",
                          PyDoc_STR("Hashing and moving of bytes, in threads, without the GIL."),
                          0,
                          methods,
                          slots,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__core() { return PyModuleDef_Init(&definition); }
