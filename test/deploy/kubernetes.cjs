// node kubernetes.cjs NODE_MODULES FILE: fails where an object in the file is none that the API of Kubernetes takes, or has a field that the API does not know.
const { createRequire } = require("node:module");
const { readFileSync } = require("node:fs");

// The schemas let unknown fields pass. They are those that nobody reads, in objects whose fields nobody lists.
const unread = new Set();

// watched is a value that notes which of its fields are read.
function watched(value, path) {
  if (value === null || typeof value !== "object") return value;
  for (const name of Object.keys(value)) {
    value[name] = watched(value[name], `${path}.${name}`);
    if (!Array.isArray(value)) unread.add(`${path}.${name}`);
  }
  return new Proxy(value, {
    get(object, name) {
      unread.delete(`${path}.${String(name)}`);
      return object[name];
    },
    ownKeys(object) {
      for (const name of Object.keys(object)) unread.delete(`${path}.${name}`);
      return Reflect.ownKeys(object);
    },
  });
}

const from = createRequire(process.argv[2] + "/");
for (const document of from("yaml").parseAllDocuments(readFileSync(process.argv[3], "utf8"))) {
  if (document.errors.length > 0) throw document.errors[0];
  const object = document.toJS();
  const Kind = from(`kubernetes-models/${object.apiVersion}/${object.kind}`)[object.kind];
  watched(new Kind(object), object.kind).validate();
  unread.delete(`${object.kind}.apiVersion`), unread.delete(`${object.kind}.kind`);
  if (unread.size > 0) throw new Error(`the API does not know ${[...unread].join(", ")}`);
}
