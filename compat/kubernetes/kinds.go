package kubernetes

import (
	"encoding/base64"
	"fmt"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// namespace is where all objects are.
const namespace = "lane"

// kind is a kind of objects that are written. Each version of an object carries a number that no other version
// of any object of the kind has.
type kind struct {
	schema.GroupVersionKind
	resource string
	path     string // below the apiserver's prefix
	binary   bool   // stored as protobuf
	set      func(o *unstructured.Unstructured, n int)
	number   func(o *unstructured.Unstructured) string
}

func core(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Version: "v1", Kind: kind}
}

// text gives objects a realistic size: a kilobyte, as those of real clusters have.
func text(n int) string { return fmt.Sprintf("%01024d", n) }

func nested(fields ...string) func(*unstructured.Unstructured) string {
	return func(o *unstructured.Unstructured) string {
		s, _, _ := unstructured.NestedString(o.Object, fields...)
		return s
	}
}

var kinds = []*kind{
	{GroupVersionKind: core("ConfigMap"), resource: "configmaps", path: "configmaps", binary: true,
		set: func(o *unstructured.Unstructured, n int) {
			o.Object["data"] = map[string]any{"n": strconv.Itoa(n), "text": text(n)}
		}, number: nested("data", "n")},
	{GroupVersionKind: core("Secret"), resource: "secrets", path: "secrets", binary: true,
		set: func(o *unstructured.Unstructured, n int) {
			o.Object["data"] = map[string]any{"n": base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(n)))}
		}, number: func(o *unstructured.Unstructured) string {
			b, _ := base64.StdEncoding.DecodeString(nested("data", "n")(o))
			return string(b)
		}},
	{GroupVersionKind: schema.GroupVersionKind{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}, resource: "leases", path: "leases", binary: true,
		set: func(o *unstructured.Unstructured, n int) {
			o.Object["spec"] = map[string]any{"holderIdentity": strconv.Itoa(n), "leaseDurationSeconds": int64(15)}
		}, number: nested("spec", "holderIdentity")},
	{GroupVersionKind: schema.GroupVersionKind{Group: "lane.quorate", Version: "v1", Kind: "Widget"}, resource: "widgets", path: "lane.quorate/widgets",
		set: func(o *unstructured.Unstructured, n int) {
			o.Object["spec"] = map[string]any{"n": strconv.Itoa(n), "text": text(n)}
		}, number: nested("spec", "n")},
}

// events expire; they are written once, and their expiry is waited for.
var events = &kind{GroupVersionKind: core("Event"), resource: "events", path: "events", binary: true,
	set: func(o *unstructured.Unstructured, n int) {
		o.Object["involvedObject"] = map[string]any{"kind": "Namespace", "name": namespace, "namespace": namespace}
		o.Object["reason"], o.Object["message"], o.Object["type"] = "Lane", strconv.Itoa(n), "Normal"
	}, number: nested("message")}

// widgets is the definition of the custom resource.
var widgets = map[string]any{
	"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
	"metadata": map[string]any{"name": "widgets.lane.quorate"},
	"spec": map[string]any{
		"group": "lane.quorate", "scope": "Namespaced",
		"names": map[string]any{"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
		"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true,
			"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{
				"spec": map[string]any{"type": "object", "properties": map[string]any{"n": map[string]any{"type": "string"}, "text": map[string]any{"type": "string"}}}}}}}},
	},
}

func (k *kind) in(c dynamic.Interface) dynamic.ResourceInterface {
	return c.Resource(k.GroupVersion().WithResource(k.resource)).Namespace(namespace)
}

// object is a new version of an object; revision "" makes one that does not exist yet.
func (k *kind) object(name, revision string, n int) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetGroupVersionKind(k.GroupVersionKind)
	o.SetName(name)
	o.SetNamespace(namespace)
	o.SetResourceVersion(revision)
	k.set(o, n)
	return o
}

func onlyAt(revision string) metav1.DeleteOptions {
	return metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &revision}}
}
