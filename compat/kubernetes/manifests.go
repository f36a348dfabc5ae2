package kubernetes

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// documents are the objects of a manifest, as JSON.
func documents(t testing.TB, file string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(deploy, file))
	must(t, err)
	var all [][]byte
	for _, part := range bytes.Split(b, []byte("\n---\n")) {
		j, err := yaml.YAMLToJSONStrict(part)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if string(j) != "null" {
			all = append(all, j)
		}
	}
	return all
}

// strict decodes an object of Kubernetes' API; a field that does not exist is an error.
func strict(t testing.TB, b []byte) runtime.Object {
	t.Helper()
	o, _, err := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer().Decode(b, nil, nil)
	must(t, err)
	return o
}

func loose(t testing.TB, b []byte) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	must(t, json.Unmarshal(b, &o.Object))
	return o
}

// statefulSet is the manifest's StatefulSet, and the one that grow.yaml changes it to.
func statefulSet(t testing.TB) (founding, growing *appsv1.StatefulSet) {
	t.Helper()
	patchYAML, err := os.ReadFile(filepath.Join(deploy, "statefulset/grow.yaml"))
	must(t, err)
	patchJSON, err := yaml.YAMLToJSONStrict(patchYAML)
	must(t, err)
	patch, err := jsonpatch.DecodePatch(patchJSON)
	must(t, err)
	for _, b := range documents(t, "statefulset/etcd.yaml") {
		set, ok := strict(t, b).(*appsv1.StatefulSet)
		if !ok {
			continue
		}
		grown, err := patch.Apply(b)
		must(t, err)
		return set, strict(t, grown).(*appsv1.StatefulSet)
	}
	t.Fatal("the manifest has no StatefulSet")
	return nil, nil
}
