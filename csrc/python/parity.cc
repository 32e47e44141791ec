// fastckpt._core.encode_parity and recover_leaves: parity of a file, and lost leaves back from it.

#include "parity.h"

#include <new>
#include <vector>

#include "../core/bytes.h"
#include "../core/constants.h"
#include "../core/parity.h"

namespace fastckpt {
namespace python {

namespace {

// The file, or its bytes in memory.
bool GetSource(PyObject* object, Buffer* buffer, ParityRequest* request) {
  if (PyLong_Check(object)) {
    request->source_fd = static_cast<int>(PyLong_AsLong(object));
    return PyErr_Occurred() == nullptr;
  }
  if (!buffer->Get(object, PyBUF_SIMPLE)) return false;
  request->memory = buffer->data();
  if (buffer->size() == request->size) return true;
  PyErr_Format(PyExc_ValueError, "source: %zd bytes are not the size",
               static_cast<Py_ssize_t>(buffer->size()));
  return false;
}

// A buffer of `count` items of this size.
bool GetExactly(PyObject* object, int flags, uint64_t count, size_t item, const char* name,
                Buffer* buffer) {
  if (!buffer->GetArray(object, flags, item, name)) return false;
  if (buffer->size() / item == count) return true;
  PyErr_Format(PyExc_ValueError, "%s: %zd items, not %llu", name,
               static_cast<Py_ssize_t>(buffer->size() / item),
               static_cast<unsigned long long>(count));
  return false;
}

bool GetNumbers(PyObject* object, const char* name, Buffer* buffer, const uint64_t** numbers,
                size_t* count) {
  if (!buffer->GetArray(object, PyBUF_SIMPLE, sizeof(uint64_t), name) ||
      !buffer->IsAligned(alignof(uint64_t), name))
    return false;
  *numbers = reinterpret_cast<const uint64_t*>(buffer->data());
  *count = buffer->size() / sizeof(uint64_t);
  return true;
}

// The faults as Python has them; null with an exception set.
PyObject* RunParity(const ParityRequest& request, uint64_t total, long threads,
                    PyObject* progress) {
  ParityJob job(request);
  if (!RunJob(&job, UsefulThreads(threads, total), progress)) return nullptr;
  std::vector<ReadFault> faults;
  const Status status = job.Finish(&faults);
  return status.ok() ? FaultList(faults) : Raise(status);
}

PyObject* EncodeParity(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"source", "size",   "groups",  "rows",
                                "first",  "parity", "leaves",  "threads",
                                "source_direct_fd", "progress", nullptr};
  ParityRequest request;
  PyObject* source_object = nullptr;
  PyObject* parity_object = nullptr;
  PyObject* leaves_object = nullptr;
  PyObject* progress = Py_None;
  unsigned long long size = 0, groups = 0, first = 0;
  long rows = 0, threads = 0;  // required: 0 is refused below
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OKKlKOO|$liO", const_cast<char**>(names),
                                   &source_object, &size, &groups, &rows, &first, &parity_object,
                                   &leaves_object, &threads, &request.source_direct_fd,
                                   &progress) ||
      !CheckThreads(threads))
    return nullptr;
  request.size = size;
  request.groups = groups;
  request.rows = static_cast<size_t>(rows);
  Buffer source, parity, leaves;
  if (!GetSource(source_object, &source, &request)) return nullptr;
  uint64_t total = 0;
  Status status = request.Check(&total);  // of all but the groups, for the sizes that follow
  if (!status.ok()) return Raise(status);
  if (!parity.GetArray(parity_object, PyBUF_WRITABLE, request.rows * kLeafSize, "parity"))
    return nullptr;
  if (leaves_object != Py_None) {
    if (!GetExactly(leaves_object, PyBUF_WRITABLE, request.leaf_count(), sizeof(uint64_t),
                    "leaves", &leaves) ||
        !leaves.IsAligned(alignof(uint64_t), "leaves"))
      return nullptr;
    if (leaves.size() != 0) request.leaves = reinterpret_cast<uint64_t*>(leaves.data());
  }
  std::vector<uint64_t> picked;
  try {
    picked.resize(parity.size() / (request.rows * kLeafSize));
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  for (size_t i = 0; i < picked.size(); ++i) picked[i] = first + i;
  request.picked = picked.data();
  request.picked_count = picked.size();
  request.parity = parity.data();
  status = request.Check(&total);
  if (!status.ok()) return Raise(status);
  return RunParity(request, total, threads, progress);
}

PyObject* RecoverLeaves(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"source", "size",   "groups",  "rows",
                                "picked", "parity", "known",   "lost",
                                "recovered", "solved", "threads", "source_direct_fd",
                                "mapped", "progress", nullptr};
  ParityRequest request;
  int mapped = 0;
  PyObject* source_object = nullptr;
  PyObject* picked_object = nullptr;
  PyObject* parity_object = nullptr;
  PyObject* known_object = nullptr;
  PyObject* lost_object = nullptr;
  PyObject* recovered_object = nullptr;
  PyObject* solved_object = nullptr;
  PyObject* progress = Py_None;
  unsigned long long size = 0, groups = 0;
  long rows = 0, threads = 0;  // required: 0 is refused below
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OKKlOOOOOO|$lipO",
                                   const_cast<char**>(names), &source_object, &size, &groups,
                                   &rows, &picked_object, &parity_object, &known_object,
                                   &lost_object, &recovered_object, &solved_object, &threads,
                                   &request.source_direct_fd, &mapped, &progress) ||
      !CheckThreads(threads))
    return nullptr;
  request.size = size;
  request.groups = groups;
  request.rows = static_cast<size_t>(rows);
  Buffer source, picked, parity, known, lost, recovered, solved;
  if (!GetSource(source_object, &source, &request) ||
      !GetNumbers(picked_object, "picked", &picked, &request.picked, &request.picked_count) ||
      !GetNumbers(lost_object, "lost", &lost, &request.lost, &request.lost_count))
    return nullptr;
  request.mapped = mapped != 0 && request.memory != nullptr;
  uint64_t total = 0;
  const Status status = request.Check(&total);
  if (!status.ok()) return Raise(status);
  const uint64_t leaves = request.rows * request.picked_count;
  if (!GetExactly(parity_object, PyBUF_SIMPLE, leaves, kLeafSize, "parity", &parity) ||
      !GetExactly(known_object, PyBUF_SIMPLE, leaves, 1, "known", &known) ||
      !GetExactly(recovered_object, PyBUF_WRITABLE, request.lost_count, kLeafSize, "recovered",
                  &recovered) ||
      !GetExactly(solved_object, PyBUF_WRITABLE, request.lost_count, 1, "solved", &solved))
    return nullptr;
  static uint8_t nothing = 0;  // an empty buffer may have no address; "encode" must differ
  request.parity = parity.data();
  request.known = known.data();
  request.recovered = request.lost_count != 0 ? recovered.data() : &nothing;
  request.solved = solved.data();
  return RunParity(request, total, threads, progress);
}

PyMethodDef methods[] = {
    {"encode_parity", WithKeywords(EncodeParity), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("encode_parity(source, size, groups, rows, first, parity, leaves, *, threads, "
               "source_direct_fd=-1, progress=None)\n--\n\n"
               "The parity of some groups of leaves, and the digests of these.")},
    {"recover_leaves", WithKeywords(RecoverLeaves), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("recover_leaves(source, size, groups, rows, picked, parity, known, lost, recovered, "
               "solved, *, threads, source_direct_fd=-1, mapped=False, progress=None)\n--\n\n"
               "Lost leaves of some groups, from the others and their parity.")},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool AddParity(PyObject* module) { return PyModule_AddFunctions(module, methods) == 0; }

}  // namespace python
}  // namespace fastckpt
