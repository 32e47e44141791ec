#include "planes.h"

#include <memory>
#include <new>

#include "../core/planes.h"

namespace fastckpt {
namespace python {

namespace {

PyObject* Encode(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"raw", "kinds", "row_length", "phase", nullptr};
  PyObject* raw_object = nullptr;
  PyObject* kinds_object = nullptr;
  unsigned int row_length = 0;
  unsigned int phase = 0;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|$II", const_cast<char**>(names),
                                   &raw_object, &kinds_object, &row_length, &phase))
    return nullptr;
  Buffer raw;
  Buffer kinds;
  if (!raw.Get(raw_object, PyBUF_SIMPLE) || !kinds.Get(kinds_object, PyBUF_SIMPLE)) return nullptr;
  if (raw.size() > kChunkSize)
    return PyErr_Format(PyExc_ValueError, "raw: %zu bytes are more than a chunk", raw.size());
  if (kinds.size() != PlanesBlockCount(raw.size()))
    return PyErr_Format(PyExc_ValueError, "kinds: %zu, not one for each of %zu blocks", kinds.size(),
                        PlanesBlockCount(raw.size()));
  // Kept: to touch fresh pages for each chunk would take longer than to encode it.
  static thread_local std::unique_ptr<uint8_t[]> out;
  if (out == nullptr) out.reset(new (std::nothrow) uint8_t[PlanesRoom(kChunkSize)]);
  if (out == nullptr) return PyErr_NoMemory();
  size_t stored = 0;
  Status status;
  {
    WithoutGil without_gil;
    const PlanesChunk chunk = {raw.data(), raw.size(), kinds.data(), row_length, phase};
    status = EncodePlanes(chunk, out.get(), &stored);
  }
  if (!status.ok()) return Raise(status);
  if (stored == 0) Py_RETURN_NONE;
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(out.get()),
                                   static_cast<Py_ssize_t>(stored));
}

PyObject* Decode(PyObject*, PyObject* arguments) {
  PyObject* stored_object = nullptr;
  PyObject* raw_object = nullptr;
  if (!PyArg_ParseTuple(arguments, "OO", &stored_object, &raw_object)) return nullptr;
  Buffer stored;
  Buffer raw;
  if (!stored.Get(stored_object, PyBUF_SIMPLE) || !raw.Get(raw_object, PyBUF_WRITABLE))
    return nullptr;
  Status status;
  {
    WithoutGil without_gil;
    status = DecodePlanes(stored.data(), stored.size(), raw.data(), raw.size());
  }
  if (!status.ok()) return Raise(status);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"planes_encode",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Encode)),
     METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("planes_encode(raw, kinds, *, row_length=0, phase=0)\n--\n\n"
               "The stored bytes of a chunk with the codec planes, or None.")},
    {"planes_decode", Decode, METH_VARARGS,
     PyDoc_STR("planes_decode(stored, raw, /)\n--\n\n"
               "Fill a buffer with the raw bytes of a chunk with the codec planes.")},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool AddPlanes(PyObject* module) { return PyModule_AddFunctions(module, methods) == 0; }

}  // namespace python
}  // namespace fastckpt
