{{/* Each role's settings: the fleet's, under the role's own. */}}

{{/* A pool with the defaults that it leaves out, as YAML. Takes (root, pool). */}}
{{- define "aios.pool" -}}
{{- mergeOverwrite (deepCopy .root.Values.workerDefaults) (deepCopy (default dict .pool)) | toYaml -}}
{{- end -}}

{{/* Takes (root, role: values of a role or pool). */}}
{{- define "aios.settings" -}}
{{- mergeOverwrite (deepCopy .root.Values.settings) (deepCopy .role.settings) | toYaml -}}
{{- end -}}

{{- define "aios.config" -}}
serve:
  hrm: {{- toYaml . | nindent 4 }}
{{- end -}}

{{/* A front that is to know a default model must know the models. Takes the root. */}}
{{- define "aios.config.api" -}}
{{- $settings := include "aios.settings" (dict "root" . "role" .Values.api) | fromYaml -}}
{{- if .Values.defaultModel -}}
{{- $models := list -}}
{{- $ids := list -}}
{{- range $name, $given := .Values.workerPools -}}
{{- $pool := include "aios.pool" (dict "root" $ "pool" $given) | fromYaml -}}
{{- range ternary $pool.models list $pool.enabled -}}
{{- if not (has .id $ids) -}}
{{- $ids = append $ids .id -}}
{{- $models = append $models (pick . "id" "path") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (has .Values.defaultModel $ids) -}}
{{- fail (printf "defaultModel: expected one of the pools' models (%s), got %s" (join ", " $ids) .Values.defaultModel) -}}
{{- end -}}
{{- $settings = merge (dict "default_model" .Values.defaultModel "models" $models) $settings -}}
{{- end -}}
{{- include "aios.config" $settings -}}
{{- end -}}

{{- define "aios.config.jobs" -}}
{{- include "aios.config" (include "aios.settings" (dict "root" . "role" .Values.jobs) | fromYaml) -}}
{{- end -}}

{{/* With a GPU its absence is an error, not a reason to compute on the CPU. Takes (root, pool: with its defaults). */}}
{{- define "aios.config.worker" -}}
{{- $settings := include "aios.settings" (dict "root" .root "role" .pool) | fromYaml -}}
{{- with .pool.models -}}
{{- $settings = merge (dict "models" .) $settings -}}
{{- end -}}
{{- if .pool.gpu.count -}}
{{- $settings = merge $settings (dict "device" "cuda") -}}
{{- end -}}
{{- include "aios.config" $settings -}}
{{- end -}}
