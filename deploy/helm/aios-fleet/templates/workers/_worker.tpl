{{/* Parts of a worker's Pod. Each takes a pool with its defaults, or a part of one. */}}

{{/* Takes (root, pool). */}}
{{- define "aios.workerImage" -}}
{{- $repository := default (ternary "aios/worker-cuda" "aios/worker-cpu" (gt (int .pool.gpu.count) 0)) .pool.image.repository -}}
{{- include "aios.image" (dict "root" .root "image" (dict "repository" $repository "tag" .pool.image.tag)) -}}
{{- end -}}

{{- define "aios.workerRollout" -}}
{{- if .strategy -}}
{{- toYaml .strategy -}}
{{- else if .gpu.count -}}
{maxSurge: 0, maxUnavailable: 1}
{{- else -}}
{maxSurge: 1, maxUnavailable: 0}
{{- end -}}
{{- end -}}

{{/* The pool, tolerating the taints that keep others off its GPUs: by the resource, or by all of its vendor's. */}}
{{- define "aios.tolerant" -}}
{{- $tolerations := .tolerations -}}
{{- if .gpu.count -}}
{{- range list .gpu.resource (printf "%s/gpu" (dir .gpu.resource)) | uniq -}}
{{- $tolerations = append $tolerations (dict "key" . "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- end -}}
{{- merge (dict "tolerations" $tolerations) . | toYaml -}}
{{- end -}}

{{- define "aios.withGpu" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpu.count -}}
{{- $_ := set $resources "limits" (merge (dict .gpu.resource (int .gpu.count)) (default dict $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "aios.modelMount" -}}
{{- with .modelVolume -}}
{{- if eq .kind "pvc" -}}
- {name: models, mountPath: /models, readOnly: true{{ with .subPath }}, subPath: {{ quote . }}{{ end }}}
{{- else if ne .kind "none" -}}
- {name: models, mountPath: /models, readOnly: true}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Takes (root, volume). */}}
{{- define "aios.modelVolume" -}}
{{- with .volume -}}
{{- if eq .kind "pvc" -}}
- name: models
  persistentVolumeClaim: {claimName: {{ required "modelVolume.existingClaim: needed by kind pvc" .existingClaim | quote }}, readOnly: true}
{{- else if eq .kind "image" -}}
- name: models
  image: {reference: {{ required "modelVolume.image: needed by kind image" .image | quote }}, pullPolicy: {{ $.root.Values.image.pullPolicy }}}
{{- else if eq .kind "copy" -}}
- name: models
  emptyDir: {sizeLimit: {{ .size }}}
{{- end -}}
{{- end -}}
{{- end -}}
