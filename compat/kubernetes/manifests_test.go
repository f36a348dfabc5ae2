package kubernetes

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/restmapper"
	etcdphase "k8s.io/kubernetes/cmd/kubeadm/app/phases/etcd"
	configutil "k8s.io/kubernetes/cmd/kubeadm/app/util/config"
	"sigs.k8s.io/yaml"

	"quorate/compat/child"
)

var manifests = []string{"kubeadm/etcd.yaml", "statefulset/etcd.yaml"}

// No manifest has a field that does not exist, or a duplicate one.
func TestManifestsDecode(t *testing.T) {
	t.Parallel()
	for _, file := range manifests {
		for _, b := range documents(t, file) {
			strict(t, b)
		}
	}
	statefulSet(t)
}

// The static pod is what kubeadm writes with the configuration and the patch next to it.
func TestStaticPodIsKubeadms(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(deploy, "kubeadm/config.yaml"))
	must(t, err)
	// Without a version kubeadm asks the Internet for one.
	text := strings.Replace(string(b), "\nkind: ClusterConfiguration\n", "\nkind: ClusterConfiguration\nkubernetesVersion: v1.37.2\n", 1)
	file := filepath.Join(t.TempDir(), "config.yaml")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	cfg, err := configutil.LoadInitConfigurationFromFile(file, configutil.LoadOrDefaultConfigurationOptions{SkipCRIDetect: true})
	must(t, err)
	if cfg.Patches == nil || cfg.Patches.Directory != "/etc/kubernetes/patches" {
		t.Errorf("the configuration names the patches %+v", cfg.Patches)
	}
	cfg.LocalAPIEndpoint.AdvertiseAddress = "192.168.79.134"
	out := t.TempDir()
	must(t, etcdphase.CreateLocalEtcdStaticPodManifestFile(out, filepath.Join(deploy, "kubeadm/patches"), "cp-1", &cfg.ClusterConfiguration, &cfg.LocalAPIEndpoint, false))
	written, err := os.ReadFile(filepath.Join(out, "etcd.yaml"))
	must(t, err)
	theirs, err := yaml.YAMLToJSONStrict(written)
	must(t, err)
	want, got := strict(t, theirs).(*corev1.Pod), strict(t, documents(t, "kubeadm/etcd.yaml")[0]).(*corev1.Pod)
	// The order of flags does not matter; the manifest orders them by subject.
	if w, g := sortedArgs(want), sortedArgs(got); !reflect.DeepEqual(w, g) {
		t.Errorf("kubeadm passes\n%s\nthe manifest\n%s", strings.Join(w, "\n"), strings.Join(g, "\n"))
	}
	want.Spec.Containers[0].Command, got.Spec.Containers[0].Command = nil, nil
	if w, g := asYAML(t, want), asYAML(t, got); w != g {
		t.Errorf("kubeadm writes\n%s\nthe manifest is\n%s", w, g)
	}
}

func sortedArgs(p *corev1.Pod) []string {
	set := map[string]string{}
	for _, a := range p.Spec.Containers[0].Command {
		set[a] = a
	}
	return sorted(set)
}

func asYAML(t *testing.T, o any) string {
	t.Helper()
	b, err := yaml.Marshal(o)
	must(t, err)
	return string(b)
}

// A real apiserver accepts the manifests: every field is known, valid, and admitted. The pods of the StatefulSet
// are admitted where the strictest of the pod security standards is enforced.
func TestApiserverTakesManifests(t *testing.T) {
	if !child.Isolated(t, *required) {
		return
	}
	c := newControl(newStore(t, *etcd, child.NewMachines(t, size)))
	groups, err := restmapper.GetAPIGroupResources(c.discovery)
	must(t, err)
	j := &judge{control: c, mapper: restmapper.NewDiscoveryRESTMapper(groups)}
	ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "etcd",
		"labels": map[string]any{"pod-security.kubernetes.io/enforce": "restricted"}}}}
	must(t, j.create(ns, "", false))
	for _, file := range manifests {
		for _, b := range documents(t, file) {
			o := loose(t, b)
			if o.GetNamespace() == "" {
				o.SetNamespace("etcd")
			}
			must(t, j.create(o, o.GetNamespace(), true))
		}
	}
	founding, growing := statefulSet(t)
	for _, template := range []corev1.PodTemplateSpec{founding.Spec.Template, growing.Spec.Template} {
		pod := corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Name = "etcd-0"
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-etcd-0"}}})
		b, err := json.Marshal(pod)
		must(t, err)
		must(t, j.create(loose(t, b), "etcd", true))
		// Evidence that the standard is enforced: root is refused.
		pod.Spec.SecurityContext.RunAsNonRoot, pod.Spec.SecurityContext.RunAsUser = nil, new(int64)
		b, err = json.Marshal(pod)
		must(t, err)
		if err := j.create(loose(t, b), "etcd", true); err == nil || !strings.Contains(err.Error(), "restricted") {
			t.Errorf("the same pod as root: %v", err)
		}
	}
	// Evidence that fields are validated.
	wrong := loose(t, documents(t, "kubeadm/etcd.yaml")[0])
	must(t, unstructured.SetNestedField(wrong.Object, true, "spec", "hostNetwrok"))
	if err := j.create(wrong, wrong.GetNamespace(), true); err == nil || !strings.Contains(err.Error(), "hostNetwrok") {
		t.Errorf("a field that does not exist: %v", err)
	}
}

// judge submits objects to an apiserver.
type judge struct {
	*control
	mapper meta.RESTMapper
}

func (j *judge) create(o *unstructured.Unstructured, ns string, dry bool) error {
	m, err := j.mapper.RESTMapping(schema.GroupKind{Group: o.GroupVersionKind().Group, Kind: o.GetKind()}, o.GroupVersionKind().Version)
	if err != nil {
		return err
	}
	options := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	if dry {
		options.DryRun = []string{metav1.DryRunAll}
	}
	ctx, cancel := requestContext()
	defer cancel()
	_, err = j.Resource(m.Resource).Namespace(ns).Create(ctx, o, options)
	return err
}
